"""The modeling code of pruned checkpoints: the text that is shipped, and its classes loaded from that same text."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from hlap_export.families import Family

MODELING_FILE = "modeling_hlap.py"

_FAMILY_CLASSES = """

@strict
class Hlap{config_class}(PerLayerConfig, {config_class}):
    model_type = "{model_type}"


class Hlap{model_class}(PerLayerForCausalLM, {model_class}):
    config_class = Hlap{config_class}
"""


def source(family: Family) -> str:
    """The complete `modeling_hlap.py` that a pruned checkpoint of this family carries."""
    shared = Path(__file__).with_name(MODELING_FILE).read_text(encoding="utf-8")
    names = ", ".join(sorted(("PreTrainedConfig", "PreTrainedModel", family.config_class, family.model_class)))
    imports = "from transformers import PreTrainedConfig, PreTrainedModel\n"
    assert imports in shared
    own = f"from huggingface_hub.dataclasses import strict\nfrom transformers import {names}\n"
    return shared.replace(imports, own) + _FAMILY_CLASSES.format(
        config_class=family.config_class, model_class=family.model_class, model_type=family.pruned_model_type
    )


def auto_map(family: Family) -> dict[str, str]:
    """The `auto_map` of config.json: where transformers finds the classes."""
    module = MODELING_FILE.removesuffix(".py")
    return {
        "AutoConfig": f"{module}.Hlap{family.config_class}",
        "AutoModelForCausalLM": f"{module}.Hlap{family.model_class}",
    }


@cache
def model_class(family: Family) -> Any:
    """The pruned architecture's causal-LM class, made from `source`; never from a file in a checkpoint."""
    module = ModuleType(f"hlap_export.checkpoint.modeling_{family.pruned_model_type}")
    sys.modules[module.__name__] = module
    exec(compile(source(family), module.__name__, "exec"), module.__dict__)
    return getattr(module, f"Hlap{family.model_class}")
