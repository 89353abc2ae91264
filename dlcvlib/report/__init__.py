from pathlib import Path

TITLE = "Generative models and domain adaptation"
TEMPLATE = Path(__file__).with_name("template")
RESULTS_VERSION = 3
