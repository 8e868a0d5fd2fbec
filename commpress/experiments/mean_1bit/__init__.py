"""The experiment `mean-1bit`: a mean from one bit of each sample, sequentially, against thresholds that are fixed beforehand and against unquantised samples."""
