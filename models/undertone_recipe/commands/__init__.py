"""The commands, by name: `python -m undertone_recipe COMMAND` runs the module of that name in here.

A module has a docstring that says what the command does, `arguments(parser)` that declares what it takes, and `run(args)` that does
it. Only the module that is asked for is imported, so `--help` needs no PyTorch.
"""

COMMANDS = {
    "train": "train from scratch or from a checkpoint, for a number of minutes",
    "finetune": "adapt an exported model to a folder of recordings",
    "calibrate": "set level and voicing of a checkpoint right by constants",
    "rescale": "bring a checkpoint's latents to the size that its configuration asks for",
    "refit": "fit the last stages of a checkpoint's quantiser anew",
    "balance": "bring a checkpoint's decoded shapes back to unit size and revive silent gains",
    "report": "PESQ-WB and ESTOI of a checkpoint on a folder of recordings",
    "export": "write a model folder that undertone loads",
    "int8": "add graphs with integer products to a model folder, for live streams",
    "renew": "write a model folder again with what the recipe has learnt to do since",
    "distil": "have the encoder of a model folder learn what the search of files finds",
    "digests": "write the hashes of the files that a model folder's manifest does not name",
    "verify": "check a model folder: hashes, compute, parity of torch and ONNX Runtime, codebooks",
    "tokens": "train a token model on the codes of a model folder",
    "export-tokens": "write a token model as undertone loads it",
}


def module_of(name: str) -> str:
    """Name of the module of a command."""
    return f"{__name__}.{name.replace('-', '_')}"
