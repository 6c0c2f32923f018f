"""Twenty steps of training, as transformers' SegFormer in PyTorch takes them."""

import math

import numpy as np
import oneflow as flow
import pytest
import torch
from libai.config import instantiate
from libai.models import build_graph
from libai.optim import build_optimizer
from libai.scheduler import build_lr_scheduler
from libai.utils import distributed as dist

from conftest import ROOT
from projects.SegFormer.engine.config import load_config
from projects.SegFormer.model_utils.key_rules import HUGGINGFACE, from_here
from projects.SegFormer.modeling.layers import batch_sbp
from projects.SegFormer.tools.train_transformers import (
    adamw,
    rate,
    train_step,
    transformers_model,
)

STEPS = 20
RECIPE = [f"train.train_iter={STEPS}", "train.warmup_ratio=0.2"]
import time, os
def config():
    cfg = load_config(
        str(ROOT / "configs/segformer_city.py"),
        [*RECIPE, "cfg.drop_path_rate=0.0", "cfg.decoder_dropout=0.0", *eval(os.environ.get("X","[]"))],
    )
    cfg.train.scheduler.max_iter = STEPS
    cfg.train.scheduler.warmup_iter = math.ceil(STEPS * cfg.train.warmup_ratio)
    return cfg

def batches():
    rng = np.random.default_rng(0)
    colours = rng.normal(0, 1.5, (256, 3))
    for _ in range(STEPS):
        labels = rng.integers(0, 19, (2, 4, 4)).repeat(16, 1).repeat(16, 2)
        labels[0, :9] = 255
        images = colours[labels] + rng.normal(0, 0.3, (*labels.shape, 3))
        yield np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.float32), labels

def test_a():
    cfg=config()
    flow.manual_seed(0)
    model=instantiate(cfg.model)
    t=time.time()
    for dt in (torch.float64,torch.float32):
        ref=transformers_model(model,cfg.model.cfg).to(dt)
        opt=adamw(ref,cfg.optim)
        r=[train_step(ref,opt,torch.tensor(x).to(dt),torch.tensor(y),rate(cfg.train,i)) for i,(x,y) in enumerate(batches())]
        print(r, time.time()-t)
        if dt==torch.float64: ex=r
        else: print("f32", [abs(a/b-1) for a,b in zip(r,ex)])
    t=time.time()
    model.train()
    optimizer=build_optimizer(cfg.optim,model)
    sch=build_lr_scheduler(cfg.train.scheduler,optimizer)
    o=[]
    for i,(x,y) in enumerate(batches()):
        l=model(flow.tensor(x),flow.tensor(y))["losses"]; l.backward(); optimizer.step(); optimizer.zero_grad(); sch.step(); o.append(float(l.numpy()))
    print("eager",[abs(a/b-1) for a,b in zip(o,ex)],time.time()-t)
