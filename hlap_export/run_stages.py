"""What a run asks of each verb: the recipe's section as arguments, and what its result depends on."""

from __future__ import annotations

from pathlib import Path

from hlap_export import reference_model
from hlap_export.artifacts import read_manifest, write_text_whole
from hlap_export.bench import BenchOptions, BenchReport, bench
from hlap_export.bundles import bundle
from hlap_export.checkpoint import read_layout
from hlap_export.engines import build
from hlap_export.engines.build import StandIn
from hlap_export.export import export
from hlap_export.gate.collect import read_results
from hlap_export.measuring import measured_with, measuring
from hlap_export.plan import CalibrationOptions, PruningPlan, load_plan, plan
from hlap_export.plan.pruning_plan import validate_plan
from hlap_export.plan.side_file import copy_side_file, side_file_damage, side_file_of
from hlap_export.progress import Step
from hlap_export.prune import prune
from hlap_export.recipe import ExportSection, Recipe, VerifySection, dump_recipe
from hlap_export.report.html import html_report
from hlap_export.report.markdown import markdown_report
from hlap_export.report.summary import Summary
from hlap_export.stages import StageRunner
from hlap_export.texts import has_tokenizer, read_tokens, require_window_length, spread_windows
from hlap_export.verify import VerifyOptions, VerifyReport, verify

PLAN_FILE = "plan.json"
FITTED_FILE = side_file_of(Path(PLAN_FILE)).name


class RunStages:
    """The verbs of one run; each is called, or its earlier result reused.

    Args:
        runner: the memory of the run's folder.
        dense: the checkpoint that is pruned.
        asked: the effective recipe.
        trust_remote_code: whether a tokenizer class that `dense` brings along may be executed.
        max_memory: most bytes of RAM that a step may hold; None for what the machine has free.
    """

    def __init__(
        self, runner: StageRunner, dense: Path, asked: Recipe, *, trust_remote_code: bool, max_memory: int | None
    ) -> None:
        self._runner, self._dense, self._asked = runner, dense, asked
        self._trust_remote_code, self._max_memory = trust_remote_code, max_memory

    def plan(self) -> PruningPlan:
        """Which layers lose attention, and what takes its place."""
        asked = self._asked.plan
        calibration = CalibrationOptions(
            text=asked.text or reference_model.calibration_text(),
            windows=asked.windows,
            window_length=asked.window_length,
            trust_remote_code=self._trust_remote_code,
            max_memory=self._max_memory,
            work=self._runner.unfinished(PLAN_FILE),
        )
        fitted = self._runner.path(FITTED_FILE)

        def make(step: Step) -> PruningPlan:
            if asked.file is not None:
                given = load_plan(asked.file)
                validate_plan(given, read_layout(self._dense))
                copy_side_file(side_file_of(asked.file), given, fitted)
                return given
            with measuring(self._dense, self._asked, wanted=asked.measure) as meter:
                return plan(
                    self._dense,
                    method=asked.method,
                    num_layers=asked.num_layers,
                    alphas=asked.alphas,
                    options=asked.method_options(fitted, meter),
                    calibration=calibration,
                    on_progress=step,
                )

        planned = self._runner.document(
            PLAN_FILE,
            PruningPlan,
            make=make,
            inputs={"model": self._dense, "text": calibration.text, "file": asked.file},
            parameters=asked.model_dump(mode="json", exclude={"text", "file"})
            | (measured_with(self._asked) if asked.measure else {}),
            companion_damage=lambda planned: side_file_damage(fitted, planned),
        )
        # Only now: a plan that is refused leaves no folder behind.
        write_text_whole(self._runner.path("recipe.yaml"), dump_recipe(self._asked))
        return planned

    def prune(self, planned: PruningPlan) -> Path:
        """The pruned checkpoint."""
        fitted = self._runner.path(FITTED_FILE)
        return self._runner.folder(
            "checkpoint",
            make=lambda out, step: prune(self._dense, planned, out, fitted=fitted, on_progress=step),
            inputs={"model": self._dense, "plan": self._runner.path(PLAN_FILE)},
            parameters={"plan": planned.model_dump(mode="json")},
            steps_in_bytes=True,
        )

    def export(self, name: str, checkpoint: Path, asked: ExportSection | None = None) -> Path:
        """A checkpoint as ONNX; `asked` takes the place of the recipe's section."""
        asked = asked or self._asked.export
        return self._runner.folder(
            f"onnx/{name}",
            make=lambda out, step: export(
                checkpoint,
                out,
                flavour=asked.flavour,
                dtype=asked.dtype,
                block_size=asked.block_size,
                on_progress=step,
            ),
            inputs={"checkpoint": checkpoint},
            parameters=asked.model_dump(mode="json"),
            steps_in_bytes=True,
        )

    def build(self, name: str, graph: Path, asked: Recipe | None = None) -> Path:
        """An ONNX model as an engine; `asked` takes the place of the recipe."""
        asked = asked or self._asked
        options = asked.tensorrt_options
        return self._runner.folder(
            f"engine/{name}",
            make=lambda out, step: build(graph, out, engine=asked.engine, options=options),
            inputs={"onnx": graph},
            parameters={"engine": asked.engine, **(options.parameters() if options else {})},
        )

    def stand_ins(self, checkpoints: dict[str, Path], graphs: dict[str, Path], elsewhere: StandIn) -> dict[str, Path]:
        """Engines that compute what those that were built do, where these can't run."""
        made: dict[str, Path] = {}
        for name, graph in graphs.items():
            source, parameters = graph, read_manifest(graph, kind="onnx").parameters
            if parameters["dtype"] != elsewhere.dtype:
                section = ExportSection(flavour=parameters["flavour"], dtype=elsewhere.dtype)
                source = self.export(f"{name}-{elsewhere.dtype}", checkpoints[name], section)
            made[name] = self.build(f"{name}-{elsewhere.engine}", source, Recipe(engine=elsewhere.engine))
        return made

    def verify(self, engines: dict[str, Path], checkpoints: dict[str, Path]) -> VerifyReport:
        """Verify the pruned engine, and the pruned checkpoint against the dense one."""
        asked = self._asked.verify
        text = asked.text or reference_model.evaluation_text()
        options = VerifyOptions(
            windows=asked.windows,
            window_length=asked.window_length,
            decode_steps=asked.decode_steps,
            context_length=asked.context_length,
            dense=checkpoints["dense"],
            tokenizer=checkpoints["dense"] if self._trust_remote_code else None,
            trust_remote_code=self._trust_remote_code,
            max_memory=self._max_memory,
        )
        return self._runner.document(
            "verify.json",
            VerifyReport,
            make=lambda step: verify(
                engines["pruned"],
                checkpoints["pruned"],
                text=text,
                baseline=engines["dense"],
                options=options,
                on_progress=step,
            ),
            inputs={**engines, "checkpoint": checkpoints["pruned"], "model": checkpoints["dense"], "text": text},
            parameters=asked.model_dump(mode="json", exclude={"text"}),
        )

    def bench(self, engines: dict[str, Path]) -> BenchReport:
        """The pruned engine timed against the dense one."""
        asked = self._asked.bench
        return self._runner.document(
            "bench.json",
            BenchReport,
            make=lambda step: bench(
                engines["pruned"],
                engines["dense"],
                prompt_lengths=asked.prompt_lengths,
                context_lengths=asked.context_lengths,
                options=BenchOptions(batches=asked.batches, repeats=asked.repeats, rounds=asked.rounds),
                on_progress=step,
            ),
            inputs={**engines},
            parameters=asked.model_dump(mode="json"),
        )

    def bundle(self, engine: Path, verified: VerifyReport) -> None:
        """A folder that a serving stack loads, if one is asked for and the engine is right."""
        target = self._asked.bundle
        if target is not None and verified.passed:
            self._runner.folder(
                "bundle",
                make=lambda out, step: bundle(engine, out, target=target),
                inputs={"engine": engine},
                parameters={"target": target},
            )

    def write_results(self, summary: Summary) -> Summary:
        """Write the run's results, for machines and for people, and the manifest of its folder; then hand them on."""
        out = self._runner.path
        write_text_whole(out("summary.json"), summary.model_dump_json(indent=2) + "\n")
        write_text_whole(out("results.json"), read_results(out(".")).model_dump_json(indent=2) + "\n")
        write_text_whole(out("report.md"), markdown_report(summary))
        write_text_whole(out("report.html"), html_report(summary))
        parameters = self._asked.model_dump(mode="json")
        self._runner.seal(inputs={"model": self._dense}, parameters=parameters, passed=summary.passed)
        return summary


def require_evaluation_text(dense: Path, asked: VerifySection, *, trust_remote_code: bool) -> None:
    """Find out that the text is missing or too short now, not after the search and two exports."""
    if has_tokenizer(dense):
        text = asked.text or reference_model.evaluation_text()
        layout = read_layout(dense)
        require_window_length(asked.window_length, layout.max_positions)
        tokens = read_tokens(dense, text, vocab_size=layout.vocab_size, trust_remote_code=trust_remote_code)
        spread_windows(tokens, windows=asked.windows, window_length=asked.window_length)
