import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CODE = """
import sys
import unipic_core.metaquery
print({"diffusers", "transformers", "torch"} & set(sys.modules))
"""


def test_the_package_can_be_named_without_importing_transformers():
    result = subprocess.run([sys.executable, "-c", CODE], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_the_package_names_what_it_has():
    from unipic_core import metaquery

    assert metaquery.MetaQueryEncoder.__module__ == "unipic_core.metaquery.encoder"
    assert not hasattr(metaquery, "Anything")
