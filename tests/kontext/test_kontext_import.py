import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CODE = """
import sys
from unipic_core.kontext import edit_size
print({"diffusers", "transformers", "torch"} & set(sys.modules))
"""


def test_edit_size_is_at_hand_without_importing_diffusers():
    result = subprocess.run([sys.executable, "-c", CODE], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_the_package_names_what_it_has():
    from unipic_core import kontext

    assert kontext.KontextPipeline.__module__ == "unipic_core.kontext.pipeline"
    assert not hasattr(kontext, "Anything")
