"""`python -m apr` under Accelerate's FSDP on CPUs, through gloo: Accelerate by itself shards on GPUs only.

    accelerate launch --config_file profiles/accelerate/fsdp.yaml -m tests.fsdp_on_cpu FOLDER...
"""
import os
import sys

import torch
from accelerate.state import DistributedType, PartialState
from apr.cli.main import main
torch.distributed.init_process_group("gloo")
PartialState._prepare_backend = lambda *_: ("gloo", DistributedType.MULTI_GPU)
os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
sys.exit(main())
