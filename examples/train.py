"""Train the demo models on the texts of the small world.

python examples/train.py                      all three, in under twenty minutes on two cores
python examples/train.py --only translator
"""

import argparse
import json
import time
from pathlib import Path

import torch
import transformers
from training.storyteller import train_storyteller
from training.summarizer import train_summarizer
from training.translator import train_translator

TRAINERS = {
    "summarizer": train_summarizer,
    "translator": train_translator,
    "storyteller": train_storyteller,
}
MODELS = Path(__file__).parent / "models"


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the demo models from the small world.")
    parser.add_argument("--only", choices=TRAINERS, help="train this model only")
    parser.add_argument(
        "--seed", type=int, default=1, help="seed of texts and weights (default: 1)"
    )
    parser.add_argument(
        "--out", type=Path, default=MODELS, help="folder for the checkpoints (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    transformers.utils.logging.disable_progress_bar()
    for name in [arguments.only] if arguments.only else TRAINERS:
        train(name, arguments.out / name, arguments.seed)


def train(name: str, folder: Path, seed: int) -> None:
    """Train one model into the folder, and write a record of its training beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    wall, cpu = time.perf_counter(), time.process_time()
    torch.manual_seed(seed)
    num_texts = TRAINERS[name](folder, seed)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    record = {
        "seed": seed,
        "num_texts": num_texts,
        "seconds": round(wall),
        "cpu_seconds": round(cpu),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    (folder / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    for file in folder.iterdir():
        file.chmod(0o644)  # safetensors writes files that only their owner can read
    num_bytes = sum(each.stat().st_size for each in folder.iterdir())
    print(f"{name}: {wall:.0f} s ({cpu:.0f} s of CPU), {num_bytes / 1e6:.1f} MB in {folder}")


if __name__ == "__main__":
    main()
