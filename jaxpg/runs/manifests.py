"""manifest.json: what a run directory trains, and how that came about. Imports no jax."""

import dataclasses
import hashlib
import json
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxpg import files, words
from jaxpg.core.config import FIELDS, OWN_PARAMS, Config, ConfigError, EnvParams, of_json
from jaxpg.core.rules import validate
from jaxpg.errors import RunError
from jaxpg.population import evaluations, own
from jaxpg.population.evaluations import Evaluating
from jaxpg.population.own import OPTION, Build, Source
from jaxpg.population.settings import MOST_SEEDS, value_of, with_setting

NAME = "manifest.json"
SWEEP, RACE = "sweep.json", "race.json"  # of directories of several runs
SCHEMA = 2
BITS = 6  # to be raised by whatever makes a manifest train to other bits, as other key streams do
BUDGETS = ("total_steps", "total_episodes")  # one of them is `Config.budget`
# What Config had at first. A run from before a later field did what is that field's default.
_FIRST = (
    *("env", "max_episode_steps", "time_limit", "collect", "num_envs", "num_steps"),
    *("total_steps", "total_episodes", "estimator", "baseline", "discounting", "gamma"),
    *("gae_lambda", "normalize_advantage", "reduction", "ent_coef", "value_target", "value_data"),
    *("value_steps", "buffer_size", "batch_size", "vf_coef", "networks", "hidden_sizes"),
    *("activation", "sigma", "log_prob", "optimizer", "learning_rate", "value_learning_rate"),
    *("lr_schedule", "max_grad_norm", "arithmetic"),
)
LATER: dict[str, Any] = {
    name: field.default for name, field in FIELDS.items() if name not in _FIRST
}
SECONDS = "seconds_before"  # of `made`: training that no checkpoint counts, as of a merged run
LARGEST = 16 * 2**20  # bytes; no manifest is as large


class Origin(NamedTuple):
    """Whose parameters a run starts from: a finished run's, which it has a copy of."""

    run: str | None  # its directory then, for people; None of a population in memory
    manifest: str  # SHA-256 of its manifest.json, by which it is known
    params: str  # SHA-256 of start.safetensors, its parameters, which decide the results
    env: str | None = None  # its environment, as of `words.world`
    env_sha256: str | None = None  # as of its manifest
    untrained: float | None = None  # what its untrained policies returned there, on average


class Manifest(NamedTuple):
    """What decides every bit of the results, and `made`, which is for people."""

    preset: str
    config: Config
    parts: tuple[str, ...]  # seeds, as in `parse_seeds`; each part fills lanes of its own
    lanes: int  # L
    segment: int  # updates per segment
    settings: tuple[dict[str, Any], ...]  # of traced fields; every seed is trained with each
    made: dict[str, Any]  # versions, commit, device, command
    bits: int = BITS  # of the version that began it
    # What makes the algorithm, if it has parts of one's own: MODULE:FUNCTION, the SHA-256 of its
    # module's file (None where that is not known), and its options.
    build: str | None = None
    build_sha256: str | None = None
    options: EnvParams = OWN_PARAMS
    env_sha256: str | None = None  # of an environment of one's own: its file, a script's class
    start: Origin | None = None  # each seed starts from the same seed's parameters there
    evaluating: Evaluating | None = None

    @property
    def source(self) -> Source | None:
        """Where the algorithm came from; None if it is jaxpg's own."""
        return None if self.build is None else Source(self.build, self.build_sha256)

    @property
    def called(self) -> str:
        """The algorithm, for people: a preset, or mine:build with scale=0.5."""
        if self.build is None:
            return self.preset
        options = words.parameters(self.options, self.varied, OPTION)
        return f"{self.build} with {options}" if options else self.build

    @property
    def seeds(self) -> list[int]:
        """All seeds, in order."""
        return [seed for part in self.parts for seed in parse_seeds(part)]

    @property
    def varied(self) -> list[str]:
        """What the settings have values of, by name."""
        return list(dict.fromkeys(name for setting in self.settings for name in setting))

    def values(self, name: str) -> list[Any]:
        """What each setting has of a field, a parameter of the environment or an option."""
        if name.startswith(OPTION):
            return [
                own.with_setting(self.options, setting)[name.removeprefix(OPTION)]
                for setting in self.settings
            ]
        return [value_of(with_setting(self.config, setting), name) for setting in self.settings]

    @property
    def rows(self) -> list[tuple[int, int]]:
        """The seed and the index of the setting of each row of the results, in order."""
        return [
            (seed, setting)
            for part in self.parts
            for setting in range(len(self.settings))
            for seed in parse_seeds(part)
        ]


def write(directory: Path, manifest: Manifest) -> None:
    """Write manifest.json, whole or not at all."""
    files.write(directory / NAME, text(manifest))


def text(manifest: Manifest) -> str:
    """What manifest.json says of it."""
    fields = {
        **manifest._asdict(),
        "config": dataclasses.asdict(manifest.config),
        "start": manifest.start and manifest.start._asdict(),
        "evaluating": manifest.evaluating and manifest.evaluating._asdict(),
    }
    return files.as_json({"schema": SCHEMA, "seeds": fields.pop("parts"), **fields})


def read(directory: Path) -> Manifest:
    """The directory's manifest.

    Raises:
      RunError: if there is none, or it is not one that this version or one before it writes.
    """
    return parse(_content(directory), directory / NAME)


def sha256(directory: Path) -> str:
    """SHA-256 of manifest.json, by which the results say whose they are."""
    return hashlib.sha256(_content(directory)).hexdigest()


def algorithm(directory: Path, manifest: Manifest, changed: bool = False) -> Build:
    """What makes a run's algorithm, imported.

    Args:
      changed: whether its source may be another one than the run was begun with.

    Raises:
      ConfigError: if it cannot be imported, or has not the run's options any more.
      RunError: if its source is another one.
    """
    if manifest.build is not None and not own.is_importable(manifest.build):
        raise RunError(
            f"{directory} was begun with the algorithm of {manifest.build}, which no command can "
            "import: jaxpg.train_population(…, out=…, build=…) goes on with it"
        )
    build = own.find(manifest.build, manifest.options)
    if not changed:
        check_source(directory, manifest, own.source(build))
    return build


def check_source(directory: Path, manifest: Manifest, now: Source | None) -> None:
    """Raise RunError unless what makes the algorithm, and an environment of one's own, is what the
    run was begun with."""
    if manifest.build != (now and now.name):
        raise RunError(
            f"{directory} was begun with the algorithm of {manifest.build or 'jaxpg'}, and this is "
            f"that of {now.name if now else 'jaxpg'}: jaxpg.train_population(…, out=…, build=…) "
            "goes on with it"
        )
    env = manifest.config.env
    for name, former, sha256 in (
        (now and now.name, manifest.build_sha256, now and now.sha256),
        (env, manifest.env_sha256, manifest.env_sha256 and own.env_sha256(env)),
    ):
        if sha256 != former and None not in (sha256, former):
            raise RunError(
                f"{directory} was begun with another source of {name}: its SHA-256 was "
                f"{former} and is {sha256}: put the former file back, or say --changed-algorithm "
                "(to jaxpg resume, where it is trained; changed_algorithm=True to jaxpg.load)"
            )


def check_same_bits(directory: Path, manifest: Manifest) -> None:
    """Raise RunError unless this version trains a run's seeds to the bits of who began it."""
    if manifest.bits == BITS:
        return
    versions = manifest.made.get("versions")
    version = versions.get("jaxpg") if isinstance(versions, dict) else None
    raise RunError(
        f"{directory} was begun by jaxpg {version}, commit {manifest.made.get('commit')}, which "
        "trains a seed to other bits than this version does: go on with that one, or train anew "
        "into another directory"
    )


def parse(content: bytes, path: Path) -> Manifest:
    """The manifest that these bytes are.

    Raises:
      RunError: if they are none; `path` is for the message.
    """
    with files.reading(path):
        fields = json.loads(content)
        if not isinstance(fields, dict) or "schema" not in fields:
            raise RunError(f"{path} is not the manifest of a run")
        if fields["schema"] != SCHEMA:
            raise RunError(
                f"{path} has schema {fields['schema']!r}, and this version of jaxpg reads {SCHEMA}"
            )
        try:
            return _of_fields(fields, path)
        except ConfigError as error:
            raise RunError(
                f"{path} is damaged, or of another version of jaxpg: {words.line(error)}"
            ) from None


def _of_fields(fields: dict[str, Any], path: Path) -> Manifest:
    """The manifest of what is in its file; whatever a wrong one makes Python raise."""
    _check_known(fields, {"schema", "seeds", *Manifest._fields} - {"parts"}, path)
    parts = tuple(fields["seeds"])
    manifest = Manifest(
        preset=_typed(fields["preset"], str),
        config=parse_config(fields["config"], path),
        parts=parts,
        lanes=_typed(fields["lanes"], int),
        segment=_typed(fields["segment"], int),
        settings=tuple(_typed(fields["settings"], list)),
        made=_typed(fields["made"], dict),
        bits=_typed(fields.get("bits", 1), int),  # which the first version did not write
        build=_typed(fields.get("build"), str | None),
        build_sha256=_typed(fields.get("build_sha256"), str | None),
        options=own.checked(EnvParams(_typed(fields.get("options", {}), dict))),
        env_sha256=_typed(fields.get("env_sha256"), str | None),
        start=parse_origin(fields.get("start")),
    )
    if fields.get("evaluating") is not None:
        asked = evaluations.asked(manifest.config, **_typed(fields["evaluating"], dict))
        manifest = manifest._replace(evaluating=asked)
    seeds = [seed for part in parts for seed in parse_seeds(_typed(part, str))]
    if not seeds or len(set(seeds)) != len(seeds):
        raise ValueError("seeds must be different and at least one")
    if manifest.lanes < 2 or manifest.segment < 1:
        raise ValueError("lanes must be at least 2, and segment at least 1")
    if not manifest.settings:
        raise ValueError("settings must be at least one")
    for setting in manifest.settings:
        with_setting(manifest.config, _typed(setting, dict))
        own.with_setting(manifest.options, setting)
    return manifest


def num_chunks(manifest: Manifest) -> int:
    """How many chunks of lanes the rows fill."""
    rows = [len(parse_seeds(part)) * len(manifest.settings) for part in manifest.parts]
    return sum(-(-count // manifest.lanes) for count in rows)


def parse_config(fields: Any, path: Path | str = "the config") -> Config:
    """The config that `dataclasses.asdict` made these fields from, in this version or before.

    Args:
      path: where they are written, for the message.

    Raises:
      RunError: if a newer version wrote them.
      KeyError, ValueError, TypeError, OverflowError: if they are not those of a meaningful config.
    """
    fields = LATER | _typed(fields, dict)
    _check_known(fields, FIELDS, path)
    missing = sorted(FIELDS.keys() - fields.keys())
    if missing:
        raise KeyError(missing[0])
    _typed(fields["env_params"], dict)
    return validate(of_json(fields))


def resume_line(directory: Path, callback: str | None = None, machines: Sequence[str] = ()) -> str:
    """What continues a run, for a shell.

    Args:
      machines: options that say where, and how.
    """
    called = [] if callback is None else ["--callback", callback]
    named = f"./{directory}" if str(directory).startswith("-") else str(directory)
    return shlex.join(["jaxpg", "resume", named, *called, *machines])


def check_planned(
    directory: Path, manifest: Manifest, config: Config, whose: str, varied: Collection[str] = ()
) -> None:
    """Raise RunError if a run of several is not of the config that was planned, as after `extend`.

    Args:
      config: of the plan, but for what is varied, and for the environment's parameters.
      whose: plan it is.
    """
    planned, is_now = (
        {name: getattr(one, name) for name in FIELDS if name not in (*varied, "env_params")}
        for one in (config, manifest.config)
    )
    changed = words.differences(planned, is_now)
    if changed:
        raise RunError(
            f"{directory} is no longer as the {whose} has it ({'; '.join(changed)}), and cannot be "
            "held against the others: report it by itself"
        )


def differences(old: Manifest, new: Manifest) -> list[str]:
    """What of all that decides the results is not the same, 'name: old -> new' each."""
    return words.differences(_decisive(old), _decisive(new))


def _decisive(manifest: Manifest) -> dict[str, Any]:
    """All that decides the results, by name."""
    names = ("lanes", "settings", "build", "build_sha256", "options", "env_sha256", "evaluating")
    return {
        "seeds": ",".join(manifest.parts),
        **{name: getattr(manifest, name) for name in names},
        "start": manifest.start and manifest.start.params,
        **{name: getattr(manifest.config, name) for name in FIELDS},
    }


def parse_seeds(text: str) -> Sequence[int]:
    """The seeds of '256', '1000:2000' or '3,17,42'.

    Raises:
      ConfigError: if it is none of these, or empty, or a seed is repeated or not in [0, 2^32), or
        they are more than anybody trains.
    """
    seeds: Sequence[int]
    try:
        if "," in text:
            seeds = [int(part) for part in text.split(",")]
        elif ":" in text:
            first, end = map(int, text.split(":"))
            seeds = range(first, end)
        else:
            seeds = range(int(text))
    except ValueError:
        seeds = []
    different = isinstance(seeds, range) or len(set(seeds)) == len(seeds)
    extremes = (seeds[0], seeds[-1]) if isinstance(seeds, range) and seeds else seeds
    if not seeds or not different or not all(0 <= seed < 2**32 for seed in extremes):
        raise ConfigError(
            "--seeds must be a count of at least 1, FIRST:END, or a list of different integers "
            f"in [0, 2^32); got {text!r}"
        )
    if len(seeds) > MOST_SEEDS:
        alone = f"; the seed {text} alone is {text}:{int(text) + 1}" if text.isdecimal() else ""
        raise ConfigError(
            f"--seeds must be at most {MOST_SEEDS:,} seeds; {text!r} are {len(seeds):,}{alone}"
        )
    return seeds


def format_seeds(seeds: Sequence[int]) -> str:
    """What `parse_seeds` reads as these seeds, as short as it can be said."""
    if all(seed == seeds[0] + i for i, seed in enumerate(seeds)):
        return f"{seeds[0]}:{seeds[0] + len(seeds)}"
    return ",".join(map(str, seeds))


def _check_known(fields: Mapping[str, Any], known: Iterable[str], path: Path | str) -> None:
    """Raise RunError if there are fields that this version knows nothing of."""
    unknown = sorted(fields.keys() - set(known))
    if unknown:
        raise RunError(f"{path} was made by a newer version of jaxpg: see {unknown[0]!r:.60}")


def _content(directory: Path) -> bytes:
    path = directory / NAME
    try:
        if path.stat().st_size > LARGEST:
            raise RunError(f"{path} is not the manifest of a run")
        return path.read_bytes()
    except FileNotFoundError:
        for several, what in ((SWEEP, "sweep"), (RACE, "race")):
            if (directory / several).exists():
                raise RunError(
                    f"{directory} is a {what}, of runs in folders of their own: name one of "
                    f"them; to go on with all give the same line of jaxpg {what} again"
                ) from None
        raise RunError(f"{directory} is not a run: it has no {NAME}") from None
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror})") from None


def parse_origin(fields: Any) -> Origin | None:
    """The origin that these fields are, if they are any."""
    if fields is None:
        return None
    origin = Origin(**_typed(fields, dict))
    _typed(origin.run, str | None)
    for hashed in (origin.manifest, origin.params):
        _typed(hashed, str)
    for said in (origin.env, origin.env_sha256):
        _typed(said, str | None)
    _typed(origin.untrained, float | None)
    return origin


def _typed(value: Any, wanted: Any) -> Any:
    if not isinstance(value, wanted) or isinstance(value, bool):
        raise TypeError(f"expected {getattr(wanted, '__name__', wanted)}, got {value!r:.60}")
    return value
