import pathlib; import sys; sys.path.insert(0, str(pathlib.Path.cwd()))
import sys, torch, commpress, time
from commpress import ops

dev = torch.device("cuda")
bad = 0
n_ok = 0
g = torch.Generator().manual_seed(int(sys.argv[1]) if len(sys.argv) > 1 else 7)


def table(codec, n, off=0):
    return ops.device_table(
        [(int(codec.family), codec.rate, int(codec.centroid), 0, off, n, codec.payload_nbytes(n, offset=off))], dev
    )


for spec in [
    "uniform:0.3",
    "uniform:1",
    "uniform:1.5",
    "uniform:2",
    "uniform:3",
    "uniform:4",
    "uniform:5",
    "uniform:6",
    "uniform:7",
    "uniform:8",
    "lloyd:0.5",
    "lloyd:1",
    "lloyd:2.25",
    "lloyd:4",
    "hadamard+lloyd:0.1",
    "hadamard+lloyd:1",
    "hadamard+lloyd:1.5",
    "hadamard+lloyd:2",
    "hadamard+lloyd:3",
    "hadamard+lloyd:4",
    "hadamard+lloyd:5",
    "hadamard+lloyd:6.5",
    "hadamard+lloyd:7",
    "hadamard+lloyd:8",
    "hadamard+lloyd:2,scale=centroid",
    "hadamard+lloyd:4.5,scale=centroid",
    "cast:bf16",
    "cast:fp16",
]:
    codec = commpress.codec(spec)
    for n in (1, 31, 4097, (1 << 20) - 5):
        for kind in ("normal", "heavy", "sparse", "nan", "tiny"):
            if n > 5000 and kind in ("tiny",):
                continue
            x = torch.randn(n, generator=g)
            if kind == "heavy":
                x = x**5
            if kind == "sparse":
                x = x * (torch.rand(n, generator=g) < 0.01)
            if kind == "nan":
                x[torch.randint(n, (1,), generator=g)] = float("nan")
            if kind == "tiny":
                x = x * 2.0**-130
            key = commpress.Key(seed=5, step=3, sender=1, tensor=2)
            want = codec.encode(x, key)
            t = table(codec, n)
            got = torch.full((t.nbytes,), 205, dtype=torch.uint8, device=dev)
            ops.encode_table(x.to(dev), got, t, seed=5, words=key.words())
            if not torch.equal(got.cpu(), want):
                bad += 1
                d = (got.cpu() != want).nonzero().flatten()
                print("ENC", spec, n, kind, len(d), d[:5].tolist())
                continue
            y = torch.randn(n, generator=g)
            yc = y.clone()
            codec.decode(want, key, out=yc, accumulate=True, gain=1.5, beta=0.5)
            yd = y.to(dev)
            rep = ops.new_report(dev)
            ops.decode_table(
                [got],
                yd,
                t,
                seed=5,
                senders=[key.words()[1]],
                step=3,
                tensor=2,
                report=rep,
                accumulate=True,
                gain=1.5,
                beta=0.5,
            )
            a, b = yd.cpu(), yc
            same = ((a == b) | (a.isnan() & b.isnan())).all()
            if not same:
                bad += 1
                d = (~((a == b) | (a.isnan() & b.isnan()))).nonzero().flatten()
                print("DEC", spec, n, kind, len(d), d[:5].tolist())
            else:
                n_ok += 1
print("compared", n_ok, "bad", bad)
