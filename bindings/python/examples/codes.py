"""What a recording's codes say: python codes.py MODEL_FOLDER [FILE.utn]"""

import sys

import numpy as np
import undertone

model = undertone.Model(sys.argv[1])
if len(sys.argv) > 2:
    with open(sys.argv[2], "rb") as file:
        data = file.read()
else:
    t = np.arange(48_000) / 24_000
    data = model.encode((0.3 * np.sin(2 * np.pi * 200 * t * (1 + t))).astype(np.float32), kbps=3)

codes, sound = model.codes(data), model.decode(data)
seconds = len(sound) / 24_000
print(f"{seconds:.2f} s, {len(data) * 8 / seconds / 1000:.2f} kbit/s, {codes.shape[0]} frames")
whole = codes[:, : int((codes != 65535).all(axis=0).sum())]
bits = -model.log_likelihoods(whole) / np.log(2)
for stage, mean in enumerate(bits.mean(axis=0), start=1):
    print(f"stage {stage:2}: {mean:5.2f} of 10 bits")
