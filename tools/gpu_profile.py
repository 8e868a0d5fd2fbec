import pathlib; import sys; sys.path.insert(0, str(pathlib.Path.cwd()))
import torch, commpress
from commpress import ops
dev=torch.device("cuda"); n=1<<25
x=torch.randn(n,device=dev); out=torch.randn(n,device=dev); rep=ops.new_report(dev)
for spec in ("uniform:4","hadamard+lloyd:4"):
    c=commpress.codec(spec)
    t=ops.device_table([(int(c.family),c.rate,0,0,0,n,c.payload_nbytes(n))],dev)
    p=torch.empty(t.nbytes,dtype=torch.uint8,device=dev)
    ops.encode_table(x,p,t,seed=1,words=(0,0,0))
    ops.decode_table([p],out,t,seed=1,senders=[0],step=0,tensor=0,report=rep,accumulate=True)
torch.cuda.synchronize()
