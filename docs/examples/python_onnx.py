"""An exported policy, without supple: onnxruntime, and torch alone."""

import numpy as np
import onnxruntime
import torch

obs = np.array([[1.0, 0.0, 0.5]], np.float32)  # one row

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1  # by default a thread per core, which a policy's step waits for
session = onnxruntime.InferenceSession("pendulum/policy.onnx", options)
action, command, finite = session.run(None, {"observation": obs})
print("onnxruntime", command)

policy = torch.export.load("pendulum/policy.pt2").module()
action, command = policy(torch.from_numpy(obs))
print("torch", command.numpy())
