"""What the documents tell a reader to type and to open is there: checked, not proofread."""

from __future__ import annotations

import ast
import itertools
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest
import yaml

from smallm_ros.cli import main as cli
from smallm_ros.core import errors

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted((ROOT / name for name in (
    'README.md', 'CHANGELOG.md', 'models/README.md',
    *(f'docs/{path.name}' for path in (ROOT / 'docs').glob('*.md')),
)), key=str)
POLICIES = sorted((ROOT / 'config' / 'policies').glob('*.yaml'))
LAUNCH_FILES = sorted((ROOT / 'launch').glob('*.launch.py'))
SOURCES = '\n'.join(
    path.read_text(encoding='utf-8') for path in sorted((ROOT / 'smallm_ros').rglob('*.py'))
)

BLOCK = re.compile(r'(?:^    .*\n|^[ \t]*\n(?=    ))+|^```[^\n]*\n(?:.*\n)*?```$', re.MULTILINE)
SPAN = re.compile(r'`([^`\n]+)`')
LINK = re.compile(r'\]\(([^)#\s]+)[^)]*\)')
SMALLM = re.compile(r'^(?:\S*/smallm|smallm|\$smallm|ros2 run smallm_ros smallm)\s')


def text_of(document: Path) -> str:
    return document.read_text(encoding='utf-8')


def commands() -> Iterator[tuple[Path, str]]:
    """Yield (document, command line) for every line of a block of code."""
    for document in DOCUMENTS:
        blocks = ''.join(match[0] for match in BLOCK.finditer(text_of(document)))
        for line in blocks.replace('\\\n', ' ').splitlines():
            for command in re.split(r'\s+&&\s+', re.sub(r'\s#\s.*', '', line).strip()):
                yield document, command


def mentions() -> Iterator[tuple[Path, str]]:
    """Yield (document, code) for every piece of code inside a sentence."""
    for document in DOCUMENTS:
        for code in SPAN.findall(BLOCK.sub('', text_of(document))):
            yield document, code


COMMANDS = list(commands())
MENTIONS = list(mentions())


def ids(path: object) -> str | None:
    return str(path.relative_to(ROOT)) if isinstance(path, Path) else None


@pytest.mark.parametrize('document', DOCUMENTS, ids=ids)
def test_links_lead_somewhere(document: Path) -> None:
    targets = [t for t in LINK.findall(text_of(document)) if '://' not in t]
    assert [t for t in targets if not (document.parent / t).exists()] == []


@pytest.mark.parametrize('document', DOCUMENTS, ids=ids)
def test_no_placeholder_is_left(document: Path) -> None:
    assert '@@' not in text_of(document)


def test_every_make_target_exists() -> None:
    targets = set(re.findall(r'^([a-z]+):', text_of(ROOT / 'Makefile'), re.MULTILINE))
    named = {
        (ids(document), word)
        for document, command in (*COMMANDS, *MENTIONS)
        for match in re.finditer(r'\bmake((?:\s+[^\s]+)*)', command) if goes_to_make(command)
        for word in shlex.split(match[1]) if '=' not in word
    }
    assert {'demo', 'test', 'lint', 'clean'} <= targets
    assert {word for _, word in named} >= {'demo', 'test'}
    assert {(where, word) for where, word in named if word not in targets} == set()


def goes_to_make(command: str) -> bool:
    """Return whether this is a command line of make: assignments, then `make`."""
    return re.match(r'(?:[A-Z_]+=(?:"[^"]*"|\S*)\s+)*make(?:\s|$)', command) is not None


def of_smallm(found: list[tuple[Path, str]]) -> list[tuple[Path, str]]:
    return [(document, code) for document, code in found if SMALLM.match(code)]


def test_the_documents_use_every_command() -> None:
    used = {SMALLM.sub('', code).split()[0] for _, code in of_smallm(COMMANDS + MENTIONS)}
    assert used >= {'demo', 'replay', 'models', 'check'}


@pytest.mark.parametrize(('document', 'command'), of_smallm(COMMANDS), ids=ids)
def test_every_smallm_command_line_parses(document: Path, command: str) -> None:
    words = shlex.split(SMALLM.sub('', command))
    assert callable(cli.parser().parse_args(words).run)


@pytest.mark.parametrize(('document', 'code'), of_smallm(MENTIONS), ids=ids)
def test_every_mention_of_a_smallm_command_is_one(
    document: Path, code: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Placeholders (FILE, …) may stand for values; the command and its options must be there."""
    words = shlex.split(SMALLM.sub('', code))
    choices = [word.split('|') for word in words if re.fullmatch(r'[a-z|]+', word)]
    for command in itertools.product(*choices):
        assert help_of(*command, capsys=capsys)
        for option in (word for word in words if word.startswith('--')):
            assert f'{option} ' in help_of(*command, capsys=capsys)


def help_of(*command: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        cli.parser().parse_args([*command, '--help'])
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_what_make_demo_is_told_parses() -> None:
    told = [re.search(r"ARGS='([^']*)'", code) for _, code in (*COMMANDS, *MENTIONS)]
    demo = [match[1] for match in told if match and 'make demo' in match.string]
    assert demo
    for words in demo:
        cli.parser().parse_args(['demo', *shlex.split(words)])


def declared(launch_file: Path) -> set[str]:
    """Return the names of the arguments of a launch file and of those that it includes."""
    tree = ast.parse(text_of(launch_file))
    names = {
        node.args[0].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, 'id', '') == 'DeclareLaunchArgument'
        and isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, str)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and (
                node.value.endswith('.launch.py') and node.value != launch_file.name
                and '\n' not in node.value):
            names |= declared(launch_file.parent / node.value)
    return names


def test_every_ros2_launch_names_a_file_and_its_arguments() -> None:
    launches = [(d, c) for d, c in COMMANDS if c.startswith('ros2 launch ')]
    assert launches
    for document, command in launches:
        _, _, package, file, *words = shlex.split(command)
        where = f'{ids(document)}: {command}'
        assert package == 'smallm_ros', where
        assert ROOT / 'launch' / file in LAUNCH_FILES, where
        unknown = {word.split(':=')[0] for word in words} - declared(ROOT / 'launch' / file)
        assert unknown == set(), where


def table(document: Path, first_column: str) -> list[list[str]]:
    """Return the cells of the table whose header begins with `first_column`."""
    lines = text_of(document).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f'| {first_column} |'))
    rows = []
    for line in lines[start + 2:]:
        if not line.startswith('|'):
            break
        rows.append([cell.strip() for cell in line.strip('|').split('|')])
    return rows


def test_the_documented_launch_arguments_are_those_of_the_robot() -> None:
    rows = table(ROOT / 'docs' / 'install.md', 'argument')
    documented = {name for row in rows for name in SPAN.findall(row[0])}
    assert documented == declared(ROOT / 'launch' / 'robot.launch.py')


def test_topics_and_services_of_the_architecture_are_in_the_code() -> None:
    named = [
        name for row in table(ROOT / 'docs' / 'architecture.md', 'topic')
        for name in SPAN.findall(row[0])
    ]
    assert 'cmd_vel' in named
    assert 'policy_node/command' in named
    missing = []
    for name in named:
        node, _, own = name.rpartition('/')
        if f"'{name}'" not in SOURCES and f"'~/{own}'" not in SOURCES:
            missing.append(name)
        if node:
            assert (ROOT / 'smallm_ros' / 'ros' / f'{node}.py').exists(), name
    assert missing == []


def test_message_types_of_the_architecture_are_imported() -> None:
    kinds = re.findall(r'(?:std_msgs|std_srvs)/(\w+)', text_of(ROOT / 'docs/architecture.md'))
    assert set(kinds) >= {'String', 'Trigger', 'Bool'}
    assert [kind for kind in kinds if not re.search(rf'import .*\b{kind}\b', SOURCES)] == []


def test_every_module_has_its_place_in_the_map() -> None:
    text = text_of(ROOT / 'docs' / 'architecture.md')
    house = text[text.index('```\nsmallm_ros/'):].split('```')[1]
    named = set(re.findall(r'\w+', house))
    package = ROOT / 'smallm_ros'
    missing = {
        str(path.relative_to(package)) for path in package.rglob('*.py')
        if '__' not in path.stem and path.stem not in named
        and path.parent.name not in ('summary', 'record', 'cli')  # the map has these as one
    }
    assert missing == set()


@pytest.mark.parametrize('file', POLICIES, ids=ids)
def test_a_shipped_policy_is_good(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(['check', '--model', 'none', str(file)]) == 0
    assert capsys.readouterr().out.startswith(f'{file}: {file.stem}: good')


def test_the_exported_schema_is_one_and_admits_the_shipped_policies(
    capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(['check', '--schema']) == 0
    schema = json.loads(capsys.readouterr().out)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for file in POLICIES:
        content = yaml.safe_load(file.read_text(encoding='utf-8'))
        assert [e.message for e in validator.iter_errors(content)] == [], file
        assert not validator.is_valid({**content, 'mision': 'typed wrongly'})


def test_the_exit_codes_are_one_to_a_cause() -> None:
    kinds = errors.OperatorError.__subclasses__()
    codes = [kind.exit_code for kind in (errors.OperatorError, *kinds)]
    assert len(set(codes)) == len(codes)
    assert all(2 <= code < cli.BY_SIGNAL for code in codes)


def test_the_command_says_what_it_can_do(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('COLUMNS', '80')
    for words in ([], ['demo'], ['replay'], ['prompt'], ['models'], ['check'], ['models', 'pull']):
        said = help_of(*words, capsys=capsys)
        assert said.startswith(f'usage: {" ".join(["smallm", *words])} ')
        assert all(len(line) <= 99 for line in said.splitlines())
