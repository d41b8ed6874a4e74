import os, sys, json, torch, deepspeed, torch.distributed as dist
from transformers.integrations import HfDeepSpeedConfig
from tests.distributed.zero import configuration, whole
deepspeed.init_distributed("gloo")
torch.manual_seed(0)
c=configuration(3,1); c["train_batch_size"]=8
ds=HfDeepSpeedConfig(c)
from transformers import AutoModelForSequenceClassification
import hf_dgl.models
from safetensors.torch import load_file
from hf_dgl.models import CrossModalForSequenceClassification
m=AutoModelForSequenceClassification.from_pretrained('/work/tmp/speed/zt/one')
w=whole(m); ref=load_file('/work/tmp/speed/zt/one/model.safetensors')
r=dist.get_rank()
if r==0: print('from_pretrained', w.keys()==ref.keys(), max(float((w[k]-ref[k]).abs().max()) if w[k].shape==ref[k].shape else 9e9 for k in ref))
m=CrossModalForSequenceClassification(m.config)
w2=whole(m)
torch.manual_seed(0)
from transformers.integrations import unset_hf_deepspeed_config
unset_hf_deepspeed_config()
m3=CrossModalForSequenceClassification(m.config)
w3={n:p for n,p in m3.named_parameters()}
if r==0:
    for k in w3:
        print(k, tuple(w2[k].shape), tuple(w3[k].shape), round(float(w2[k].float().std()),4), round(float(w3[k].std()),4))
