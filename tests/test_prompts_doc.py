"""docs/prompts.md and docs/sros2.md say what is so: options, prompts, and who may publish what."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from smallm_ros.cli import main
from smallm_ros.core.policy import MissionTopic, load_policy
from tests.fakes.recordings import SHARED_BAGS
from tests.options_table import BEGIN, DOCUMENT, END, table

ROOT = Path(__file__).resolve().parent.parent
SROS2 = ROOT / 'docs' / 'sros2.md'
MISTRAL = 'mistral-small-24b-instruct-2501-q4_k_m'


def test_the_table_of_options_is_that_of_the_declarations() -> None:
    text = DOCUMENT.read_text(encoding='utf-8')
    documented = text[text.index(BEGIN) + len(BEGIN):text.index(END)].strip()
    assert documented == table(), 'python -m tests.options_table writes it anew'


def test_the_operators_key_is_documented_with_its_defaults() -> None:
    (line,) = re.findall(r'^    (mission_topic: .*)$', DOCUMENT.read_text(encoding='utf-8'), re.M)
    for name, field in MissionTopic.model_fields.items():
        assert re.search(rf'\b{name}: {field.default:g}\b' if not isinstance(field.default, str)
                         else rf'\b{name}: {field.default}\b', line), name


@pytest.mark.model
@pytest.mark.skipif(not SHARED_BAGS.is_dir(), reason='the recorded bags are not there')
@pytest.mark.parametrize(('bag', 'policy', 'at', 'ticks'), [
    ('neato_test_drive', 'neato', '3.9', '3'), ('husky_outdoor_gps', 'husky', '2', '2'),
])
def test_the_prompts_to_read_are_those_of_the_recordings(
    bag: str, policy: str, at: str, ticks: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip('mistral_common')
    file = ROOT / 'config' / 'policies' / f'{policy}.yaml'
    told = ['prompt', str(SHARED_BAGS / bag), '--policy', str(file), '--model', MISTRAL]
    assert main.main([*told, '--at', at, '--ticks', ticks]) == 0
    shown = [line for line in capsys.readouterr().out.splitlines()
             if line.startswith(('static', 'tick at', '    scan', '    gps', '    odom'))]
    assert len(shown) > int(ticks)
    documented = DOCUMENT.read_text(encoding='utf-8')
    assert [line for line in shown if f'    {line}\n' not in documented] == []


# --- who may publish what -----------------------------------------------------------------------


def allowed() -> dict[str, set[tuple[str, str]]]:
    """Return for each enclave what it may do: (publish or subscribe, absolute topic)."""
    text = SROS2.read_text(encoding='utf-8')
    block = text[text.index('    <?xml'):]
    policy = ET.fromstring(block[:block.index('</policy>')].strip() + '</policy>')
    found: dict[str, set[tuple[str, str]]] = {}
    for enclave in policy.iter('enclave'):
        mine = found.setdefault(str(enclave.get('path')), set())
        for profile in enclave.iter('profile'):
            for topics in profile.iter('topics'):
                for topic in topics.iter('topic'):
                    name = str(topic.text).replace('~', f'/{profile.get("node")}')
                    mine |= {(how, f'/{name.lstrip("/")}') for how in ('publish', 'subscribe')
                             if topics.get(how) == 'ALLOW'}
    return found


def test_only_the_operator_gives_a_mission_and_only_the_watchdog_drives() -> None:
    may = allowed()
    assert {path for path, rules in may.items() if ('publish', '/mission') in rules} == {
        '/operator'}
    assert {path for path, rules in may.items() if ('publish', '/cmd_vel') in rules} == {
        '/robot'}
    assert not any('*' in topic for rules in may.values() for _, topic in rules)


def test_the_nodes_may_use_what_they_use() -> None:
    rules = allowed()['/robot']
    for node in ('policy_node', 'watchdog_node'):
        source = (ROOT / 'smallm_ros' / 'ros' / f'{node}.py').read_text(encoding='utf-8')
        own = re.findall(r"create_publisher\(\s*\w+, '(~?/?\w[\w/]*|~/\w+)'", source)
        assert own
        for topic in own:
            name = topic.replace('~', f'/{node}')
            assert ('publish', f'/{name.lstrip("/")}') in rules, topic
    for sensor in load_policy(ROOT / 'config' / 'policies' / 'explorer.yaml').sensors.values():
        assert ('subscribe', f'/{sensor.topic.lstrip("/")}') in rules
        assert ('publish', f'/{sensor.topic.lstrip("/")}') in allowed()['/base']
    assert ('subscribe', '/mission') in rules


def test_every_enclave_is_made_and_signed() -> None:
    text = SROS2.read_text(encoding='utf-8')
    for path in allowed():
        assert f'ros2 security create_enclave ~/keystore {path}\n' in text
        assert f'ros2 security create_permission ~/keystore {path} smallm.policy.xml\n' in text
