"""Qwen2 and 2.5: biases on q, k and v. Alpha scales the value bias too, which the fold turns into an o_proj bias."""

from hlap_export.families.spec import Biases, Family

QWEN2 = Family(
    model_type="qwen2",
    config_class="Qwen2Config",
    model_class="Qwen2ForCausalLM",
    fixed_biases=Biases(qkv=True, output=False),
)
