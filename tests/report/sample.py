"""A run's summary with round numbers, written by hand."""

from __future__ import annotations

from hlap_export.report.summary import (
    Agreement,
    AlphaCurve,
    Check,
    EngineBuild,
    Extrapolated,
    Latency,
    LayerRow,
    Origin,
    Perplexity,
    PhaseBuild,
    Removal,
    RemovalCurve,
    Size,
    Summary,
    Text,
    Timing,
)


def timing(p50_ms: float, *, p90_ms: float = 2.0, p99_ms: float = 2.5, limit_ms: float | None = None) -> Timing:
    """A median with an interval of 2 % to both sides."""
    return Timing(
        p50_ms=p50_ms,
        p50_low_ms=0.98 * p50_ms,
        p50_high_ms=1.02 * p50_ms,
        p90_ms=p90_ms,
        p99_ms=p99_ms,
        limit_ms=limit_ms,
        tokens_per_second=1e3 / p50_ms,
    )


def sample_summary(*, logit_error: float = 2.1e-7) -> Summary:
    """Twelve layers: 9 with fewer heads, 10 value-only with alpha 0.3, 11 without attention."""
    return Summary(
        model="reference model",
        family="llama",
        method="harp",
        engine="onnxruntime",
        flavour="ort",
        dtype="float32",
        threads=2,
        layers=tuple(_layer(index) for index in range(12)),
        sizes=(
            Size(name="parameters", unit="count", dense=2_410_000, pruned=2_287_000),
            Size(name="KV cache per token", unit="bytes", dense=3072, pruned=2304),
            Size(name="engine on disk", unit="bytes", dense=9_640_000, pruned=9_148_000),
            Size(name="peak memory", unit="bytes", dense=182 * 2**20, pruned=176 * 2**20),
        ),
        perplexities=(
            Perplexity(
                text=Text(name="calibration.txt", num_windows=32, window_length=256),
                measured_on="calibration",
                dense=12.31,
                pruned=12.80,
                all_ones=14.20,
                all_dropped=13.55,
            ),
            Perplexity(
                text=Text(name="evaluation.txt", num_windows=48, window_length=256),
                measured_on="held-out",
                dense=13.60,
                pruned=14.11,
            ),
        ),
        checks=(
            Check(name="prefill logits", value=logit_error, bound=1e-4, rule="at most", passed=logit_error <= 1e-4),
            Check(name="cached decode logits", value=1.9e-7, bound=1e-4, rule="at most", passed=True),
            Check(name="greedy agreement", value=1.0, bound=0.99, rule="at least", passed=True),
        ),
        greedy_agreement=1.0,
        latency=(
            Latency(
                phase="prefill",
                batch=1,
                num_tokens=256,
                dense=timing(32.1, p90_ms=35.0, p99_ms=36.0),
                pruned=timing(27.9, p90_ms=29.0, p99_ms=29.5),
                speedup=1.15,
                speedup_low=1.13,
                speedup_high=1.18,
                limit_speedup=1.21,
                noise=None,
            ),
            Latency(
                phase="decode",
                batch=1,
                num_tokens=512,
                dense=timing(1.31, p90_ms=1.40, p99_ms=1.90),
                pruned=timing(1.09, p90_ms=1.20, p99_ms=1.70),
                speedup=1.2,
                speedup_low=1.16,
                speedup_high=1.25,
                limit_speedup=1.16,
                noise="the ratio's interval is 12% wide (limit 10%)",
            ),
        ),
        extrapolated=(),
        search=(),
        origins=(),
        disturbed=(),
        conditions={"clock_mhz": 2450.0, "other_cpu_ratio": 0.02, "flops_per_second": 6.1e10},
        is_noisy=True,
        machine={"cpu": "Example CPU", "cores": 2, "memory_bytes": 2**34, "system": "Linux x86_64"},
        versions={"hlap-export": "0.1.0", "torch": "2.13.0"},
    )


def built_summary() -> Summary:
    """Engines that were built where they can't run."""
    builds = tuple(
        EngineBuild(
            name=name,
            compiler="TensorRT-RTX 1.7.1",
            size_bytes=6_000_000,
            build_seconds=seconds,
            capacity=4096,
            kv_bytes_per_row=2**20,
            num_kv_bindings=bindings,
            phases=(
                PhaseBuild(phase="prefill", num_kernels=70, num_fused_attention=bindings // 2),
                PhaseBuild(phase="decode", num_kernels=60, num_fused_attention=bindings // 2),
            ),
        )
        for name, seconds, bindings in (("dense", 4.1, 24), ("pruned", 3.2, 18))
    )
    reason = "no GPU here: the graphs were verified on ONNX Runtime"
    update = {"builds": builds, "measured_instead": reason, "latency": (), "is_noisy": False}
    return sample_summary().model_copy(update=update)


def full_summary() -> Summary:
    """The same with all that a run can know: the search, more times, limits, extrapolation, origins."""
    base = sample_summary()
    calibration, held_out = base.perplexities
    prefill, decode = base.latency
    limited = decode.model_copy(update={"dense": timing(1.31, limit_ms=0.9), "pruned": timing(1.09, limit_ms=0.7)})
    longer = Latency(
        phase="decode",
        batch=1,
        num_tokens=2048,
        dense=timing(2.0, limit_ms=1.1),
        pruned=timing(1.54, limit_ms=0.8),
        speedup=1.3,
        speedup_low=1.27,
        speedup_high=1.33,
        limit_speedup=1.35,
        noise=None,
    )
    return base.model_copy(
        update={
            "perplexities": (
                calibration,
                held_out.model_copy(update={"increase_ratio_low": 0.02, "increase_ratio_high": 0.055}),
            ),
            "search": tuple(
                AlphaCurve(
                    layer=layer,
                    alphas=tuple(step / 10 for step in range(11)),
                    perplexities=tuple(12.4 + 0.05 * (11 - layer) + (step / 10 - 0.4) ** 2 for step in range(11)),
                    chosen=0.4,
                )
                for layer in (11, 10, 9)
            ),
            "agreement": (
                Agreement(
                    check="cached decode logits",
                    num_tokens=128,
                    mean_error_ratio=1.1e-8,
                    mean_kl_nats=2.5e-12,
                    max_kl_nats=6.1e-12,
                    top1_agreement=1.0,
                    top5_agreement=0.998,
                ),
            ),
            "removals": tuple(
                RemovalCurve(
                    method=method,
                    is_own=method == "choose-fit",
                    points=tuple(
                        Removal(
                            removed=f"attention {12 - step}" if step else "",
                            increase_ratio=cost * step**2,
                            increase_ratio_low=0.9 * cost * step**2,
                            increase_ratio_high=1.1 * cost * step**2,
                            kv_ratio=1 - step / 12,
                            weight_ratio=1 - step / 50,
                            latency_ratio=1 - step / 15,
                            is_chosen=method == "choose-fit" and step == 3,
                        )
                        for step in range(6)
                    ),
                )
                for method, cost in (("choose-fit", 0.01), ("harp", 0.025))
            ),
            "latency": (prefill, limited, longer, decode.model_copy(update={"batch": 4})),
            "extrapolated": (
                Extrapolated(
                    batch=1,
                    num_tokens=4096,
                    longest_timed=2048,
                    dense_ms=2.9,
                    pruned_ms=2.1,
                    speedup=1.38,
                    speedup_low=1.30,
                    speedup_high=1.47,
                ),
            ),
            "disturbed": ("other programs took 12 % of the processors",),
            "origins": (
                Origin(name="plan.json", digest="1" * 64, made_from={"model": "a" * 64}),
                Origin(name="checkpoint", digest="2" * 64, made_from={"model": "a" * 64}),
                Origin(name="bench.json", digest="3" * 64, made_from={"pruned": "2" * 64}),
                Origin(
                    name="verify.json", digest="4" * 64, made_from={"model": "a" * 64, "text": f"sha256:{'b' * 64}"}
                ),
            ),
        }
    )


def _layer(index: int) -> LayerRow:
    kind = {10: "value_only", 11: "skip"}.get(index, "full")
    heads = {9: (4, 1), 11: (0, 0)}.get(index, (8, 2))
    alpha = {10: 0.3, 11: 0.0}.get(index)
    return LayerRow.model_validate(
        {
            "layer": index,
            "attention": kind,
            "num_heads": heads[0],
            "num_kv_heads": heads[1],
            "alpha": alpha,
            "is_pruned": index >= 9,
        }
    )
