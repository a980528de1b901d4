"""The content of a file of results: one model of pydantic for each kind of file and each kind of row.

Every file says its ``kind``, the ``version`` of the format, and in ``runs`` on which machine, with which versions and
on what exactly its rows were measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

VERSION: Literal[1] = 1
"""Version of the format; a reader refuses every other one."""
Percent = float


class Strict(BaseModel):
    """No unknown keys, no text for a number, no NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    OPTIONAL: ClassVar[tuple[str, ...]] = ()
    """Fields that are written only where they hold something."""

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {k: v for k, v in write(self).items() if v is not None or k not in self.OPTIONAL}


class Run(Strict):
    """One run of a benchmark. Rows are comparable where ``identity`` agrees: fingerprints of the model and of the
    questions, precision, limits."""

    machine: str  # name of its processor or GPU
    versions: dict[str, str]  # package -> version
    identity: dict[str, Any]


class Spread(Strict):
    """Median, least and most over the rounds."""

    median: float
    min: float
    max: float


class Gain(Strict):
    """The gain of one row over another on the same questions, in points, with its 95% interval."""

    difference: float
    low: float
    high: float


class Row(Strict):
    """A measurement of one method at one keep ratio."""

    run: Annotated[int, Field(ge=0)] = 0  # index into the file's ``runs``
    method: str  # a name of ``METHODS``, or of a baseline without a pruner
    keep_ratio: float | None  # 1 for the unpruned model, None where there is nothing to choose
    settings: dict[str, Any] = {}  # of the method, without how much it keeps


class AccuracyRow(Row):
    """Right and wrong answers to all questions."""

    OPTIONAL = ("marks", "encoded_tiles", "encoded_tokens", "work")
    variants: list[str] = []  # names in the ablation that the settings have; empty outside an ablation
    kept_tokens: Annotated[float, Field(gt=0)]  # mean of the visual tokens that a picture kept
    encoded_tiles: Annotated[float, Field(gt=0, le=1)] | None = None  # mean share of a picture's tiles; None: all
    encoded_tokens: Annotated[float, Field(gt=0, le=1)] | None = None  # and of tokens, through the whole encoder
    work: float | None = None  # multiply-accumulates up to the first token, of the unpruned model's; None: not counted
    right: str  # a digit a question, 1 for right
    marks: list[Annotated[float, Field(ge=0, le=1)]] | None = None  # of lists: F1 a question, which counts instead
    accuracy: Percent  # right answers, or the mean of the marks, with the bootstrap interval
    low: Percent
    high: Percent
    retention: Percent | None  # of the unpruned accuracy; None where that is 0 or was not measured
    by_kind: dict[str, Percent]  # kind of question -> accuracy
    vs_ptp: Gain | None  # compared with ptp in the run that wrote the row last


class SuiteRow(Row):
    """One benchmark of a suite."""

    benchmark: str
    score: float  # the benchmark's own
    questions: int
    tokens: float  # visual ones, a question
    kept_tokens: float
    seconds: float  # inside generate(), a question
    retention: Percent | None = None  # of the unpruned score; None where that is 0 or was not measured


class SpeedRow(Strict):
    """The times of one arm; "ideal" is the unpruned model on a prompt of the same length as the pruned one."""

    OPTIONAL = ("label", "encoder", "settings", "encoded_tiles", "encoded_tokens")
    arm: Literal["unpruned", "pruned", "ideal"]
    method: str | None  # this and all before ``tokens``: of a pruned arm
    label: str | None = None  # where several arms have the method
    encoder: str | None = None  # which arm, where those of the encoder are compared
    keep_ratio: float | None
    layer: int | None
    settings: dict[str, Any] | None = None  # others that differ from the method's own
    encoded_tiles: int | None = None  # of a prompt, thumbnail included, that the vision tower encoded
    encoded_tokens: int | None = None  # visual ones that went through the whole tower
    tokens: int  # of the prompt behind the cut
    vision_s: Spread
    select_s: Spread
    prefill_s: Spread
    decode_s_per_token: Spread
    ttft_s: Spread
    peak_bytes: int | None  # None where the system does not tell
    kv_bytes: int
    macs: dict[str, int] | None  # by phase; None where they cannot be counted

    @property
    def name(self) -> str:
        """Of a pruned arm, also in ``ratios``, ``tokens.after`` and ``samples``."""
        return self.label or self.method or self.arm


class SpeedRatios(Strict):
    """A pruned arm against the others, round by round."""

    OPTIONAL = ("vision_vs_unpruned",)
    vision_vs_unpruned: Spread | None = None
    prefill_vs_unpruned: Spread
    prefill_vs_ideal: Spread
    select_share: Spread
    ttft_vs_unpruned: Spread
    decode_vs_unpruned: Spread
    kv: float
    peak: float | None


class OverheadRow(Strict):
    """What a method adds to a prefill and to a decoding step, by count."""

    method: str
    keep_ratio: float
    layer: int
    operations: int
    reads: int
    operations_by_phase: dict[str, int]
    reads_by_phase: dict[str, int]
    decode_operations: int
    decode_reads: int
    synchronisations: int | None = None  # that torch finds on a CUDA device; None: not measured, as is the next
    microseconds: float | None = None


class ServingRow(Strict):
    """One served model, stock and with the plugin.

    Attributes:
        settings: of the plugin, beside ``keep_ratio``; None: no others.
        prompt_tokens, rounds: of "stock" and "plugin".
    """

    OPTIONAL: ClassVar[tuple[str, ...]] = ("settings",)

    case: str
    tiles: int
    requests: int
    new_tokens: int
    keep_ratio: float
    settings: dict[str, int | str] | None = None
    prompt_tokens: dict[str, int]
    plugin_vs_stock: dict[str, Spread]
    rounds: list[dict[str, dict[str, float]]]


class Mean(Strict):
    """A method's mean over the benchmarks that all methods have."""

    method: str
    keep_ratio: float
    benchmarks: int
    retention: Percent | None
    kept_tokens: float
    seconds: float


class PublishedRow(Strict):
    """A row that a paper reports; ``source`` says which."""

    method: str
    values: list[float | str | None]
    source: Annotated[str, Field(pattern=r"\S")]


class PublishedTable(Strict):
    """A table that a paper reports."""

    title: str
    model: str
    unit: str
    columns: list[str]
    rows: list[PublishedRow]

    @model_validator(mode="after")
    def _a_value_a_column(self) -> PublishedTable:
        if any(len(row.values) != len(self.columns) for row in self.rows):
            raise ValueError("every row needs one value a column")
        return self


class Results(Strict):
    """Base of all files."""

    WRITTEN_BY: ClassVar[str]

    version: Literal[1] = VERSION
    runs: list[Run] = []

    def _check_runs(self, place: str, rows: Sequence[Row]) -> None:
        for number, row in enumerate(rows):
            if row.run >= len(self.runs):
                raise ValueError(f"{place}.{number}.run is {row.run}, but there are {len(self.runs)} runs")


class AccuracyResults(Results):
    """Results of ``ptprune bench accuracy``."""

    WRITTEN_BY = "ptprune bench accuracy --out"
    OPTIONAL = ("scenes",)
    kind: Literal["accuracy"] = "accuracy"
    model: str
    items: Annotated[int, Field(ge=1)]  # number of questions
    split: str | None  # of the scenes; None for a folder of questions
    scenes: str | None = None  # name of the world and, if chosen, of its background; None for the usual one
    results: list[AccuracyRow] = []

    @model_validator(mode="after")
    def _complete(self) -> AccuracyResults:
        self._check_runs("results", self.results)
        for number, row in enumerate(self.results):
            if len(row.right) != self.items or not set(row.right) <= {"0", "1"}:
                raise ValueError(f"results.{number}.right must be {self.items} digits 0 or 1")
            if row.marks is not None and len(row.marks) != self.items:
                raise ValueError(f"results.{number}.marks must be {self.items} numbers")
        return self


class Tokens(Strict):
    """Tokens of one prompt: those that can be pruned, the others, all, and how many each pruned arm leaves."""

    visual: int
    other: int
    before: int
    after: dict[str, int]


class SpeedPicture(Strict):
    """The picture of a prompt."""

    OPTIONAL = ("background", "filled_tiles")
    kind: str  # "noise" or "scene"
    seed: int
    background: str | None = None  # this and the next: of a scene
    filled_tiles: int | None = None  # that hold something


class SpeedResults(Results):
    """Results of ``ptprune bench speed``; see docs/benchmarks-speed.md."""

    WRITTEN_BY = "ptprune bench speed --out"
    OPTIONAL = ("picture",)
    kind: Literal["speed"] = "speed"
    shape: str
    device: str
    dtype: str
    attention: str
    layers: int | None
    layers_of_shape: int | None
    vision_layers: int | None
    vision_layers_of_shape: int | None
    batch: int
    rounds: int
    new_tokens: int
    threads: int
    tiles: int
    picture: SpeedPicture | None = None  # None in files from when all were noise
    tokens: Tokens
    rows: list[SpeedRow]
    ratios: dict[str, SpeedRatios]
    samples: list[dict[str, dict[str, float]]]

    @model_validator(mode="after")
    def _complete(self) -> SpeedResults:
        if [row.arm for row in self.rows].count("unpruned") != 1:
            raise ValueError("rows must hold one unpruned arm")
        pruned = {row.name for row in self.rows if row.arm == "pruned"}
        for name, methods in (("ratios", self.ratios), ("tokens.after", self.tokens.after)):
            if set(methods) != pruned:
                raise ValueError(f"{name} must be about the pruned arms of rows")
        return self


class SuiteResults(Results):
    """Results of ``ptprune eval``."""

    WRITTEN_BY = "ptprune eval"
    kind: Literal["suite"] = "suite"
    model: str
    suite: str
    limit: int | None  # only so many questions of each benchmark
    rows: list[SuiteRow] = []
    means: list[Mean] = []
    skipped: list[dict[str, str]] = []  # benchmarks that were left out, ``{benchmark, reason}``
    expected: dict[str, Any] | None = None  # scores of a paper, ``{about, scores}``

    @model_validator(mode="after")
    def _complete(self) -> SuiteResults:
        self._check_runs("rows", self.rows)
        return self


class OverheadResults(Results):
    """Of ``ptprune bench overhead``.

    Attributes:
        unpruned: operations of the stock model's prefill.
    """

    WRITTEN_BY = "ptprune bench overhead --out"

    kind: Literal["overhead"] = "overhead"
    shape: str
    device: str
    attention: str
    layers: int
    tiles: int
    batch: int
    unpruned: int
    rows: list[OverheadRow]


class ServingResults(Results):
    """Results of ``benchmarks/serving.py``."""

    WRITTEN_BY = "benchmarks/serving.py --out"
    kind: Literal["serving"] = "serving"
    dtype: str
    threads: int
    rows: list[ServingRow]


class PublishedResults(Results):
    """Numbers of papers, collected by hand."""

    WRITTEN_BY = "hand"
    kind: Literal["published"] = "published"
    tables: list[PublishedTable]


AnyResults = Annotated[
    AccuracyResults | SpeedResults | SuiteResults | ServingResults | OverheadResults | PublishedResults,
    Field(discriminator="kind"),
]
KINDS: dict[str, type[Results]] = {kind.model_fields["kind"].default: kind for kind in Results.__subclasses__()}
