"""The experiment `cosine`: the cosine of two vectors from b-bit random projections, maximum likelihood against reading the codes as numbers, and the best b."""
