"""docs/safety.md says what the code does: drawn from its table, its names and numbers checked."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import yaml

from smallm_ros.core import diagram
from smallm_ros.core.action import STOP
from smallm_ros.core.cause import RESPONSES, Cause, Response
from smallm_ros.core.clock import MS, SECOND
from smallm_ros.core.gate import TABLE, State
from smallm_ros.core.policy import FallbackKind, Policy, load_policy
from tests.fakes.point_world import PointWorld
from tests.test_gate import PERIOD_MS, Story
from tests.test_gate import POLICY as ROUND

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / 'docs' / 'safety.md'
TEXT = DOCUMENT.read_text(encoding='utf-8')
OWN = TEXT.split(diagram.BEGIN)[0] + TEXT.split(diagram.END)[1]
BELOW = ROOT / 'config' / 'below'
POLICIES = [load_policy(path) for path in sorted((ROOT / 'config' / 'policies').glob('*.yaml'))]
EXPLORER = load_policy(ROOT / 'config' / 'policies' / 'explorer.yaml')
SOURCES = '\n'.join(
    path.read_text(encoding='utf-8')
    for path in chain((ROOT / 'smallm_ros').rglob('*.py'), (ROOT / 'config').glob('*.yaml'))
)


def rows(first_column: str) -> list[list[str]]:
    """Return the cells of the table whose header begins with `first_column`."""
    lines = TEXT.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f'| {first_column} |'))
    found = []
    for line in lines[start + 2:]:
        if not line.startswith('|'):
            break
        found.append([cell.strip() for cell in line.strip('|').split('|')])
    return found


# --- what is drawn --------------------------------------------------------------------------


def test_what_is_drawn_is_what_the_table_says_today() -> None:
    told = 'python -m smallm_ros.core.diagram docs/safety.md'
    assert diagram.redrawn(TEXT) == TEXT, f'the gate has changed: {told}'


def test_the_picture_has_every_state_and_every_way() -> None:
    """Read back from the picture, against the table itself."""
    picture = diagram.drawn().split('```')[1]
    arrows = {
        (source, word.strip(), target)
        for source, target, words in re.findall(r'^ +(\w+) --> (\w+) : (.+)$', picture, re.M)
        for word in words.split(',')
    }
    for state, row in TABLE.items():
        for response, target in row.on.items():
            drawn = {(state.value, response.name, target.value),
                     ('any', response.name, target.value)} & arrows
            assert bool(drawn) == (target is not state) or ('any' in next(iter(drawn))), (
                state, response)
        backs = {target for source, word, target in arrows
                 if source == state.value and 'nothing of' in word}
        assert backs == ({row.back.value} if row.back else set())
    assert '[*] --> STANDBY' in picture
    assert all(state.value in picture for state in State)


def test_the_picture_has_no_sign_that_would_end_a_label() -> None:
    """Mermaid reads a colon and a semicolon as the end of what stands on an arrow."""
    for line in diagram.drawn().split('```')[1].splitlines():
        label = line.partition(' : ')[2]
        assert not re.search('[:;#]', label), line


def test_the_ways_back_are_told_by_what_they_take() -> None:
    backs = {row[0].strip('`'): row[3] for row in rows('state')}
    assert backs['HOLD'] == 'to ACTIVE: nothing of WAIT or worse, armed'
    assert backs['ESTOP_LATCHED'].endswith('for 0.5 s, reset')
    assert backs['DEGRADED'].endswith('for 2 s, 5 good answers')
    assert backs['SAFE_STOP'].endswith('standing still')
    assert backs['ACTIVE'] == '-'
    assert backs['FAULT_LATCHED'] == 'a new start of the process'
    assert set(backs) == {state.value for state in State}


def test_every_cause_has_its_words_worst_first() -> None:
    found = rows('cause')
    assert {row[0].strip('`') for row in found} == {c.value for c in Cause if c is not Cause.NONE}
    demands = [Response[row[1]] for row in found]
    assert demands == sorted(demands, reverse=True)
    assert all(RESPONSES[Cause(row[0].strip('`'))].name == row[1] for row in found)
    assert all(row[2] and row[3] for row in found)
    assert {row[0] for row in found if row[3] == 'never'} == {
        f'`{c.value}`' for c in Cause if RESPONSES[c] is Response.FAULT}, 'what latches for good'


@pytest.mark.parametrize('text', [
    'no marks', diagram.BEGIN, f'{diagram.END}\n{diagram.BEGIN}',
    f'{diagram.BEGIN}{diagram.BEGIN}{diagram.END}',
])
def test_a_document_without_its_marks_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match='one line'):
        diagram.redrawn(text)


def test_a_stale_document_is_seen() -> None:
    stale = TEXT.replace('for 5 s, 3 good answers', 'for 4 s, 3 good answers')
    assert stale != TEXT
    assert diagram.redrawn(stale) == TEXT


def test_the_command_draws_it_anew(tmp_path: Path) -> None:
    stale = tmp_path / 'safety.md'
    stale.write_text(f'before\n{diagram.BEGIN}\nold\n{diagram.END}\nafter\n', encoding='utf-8')
    command = (sys.executable, '-m', 'smallm_ros.core.diagram', str(stale))
    subprocess.run(command, cwd=ROOT, check=True)
    text = stale.read_text(encoding='utf-8')
    assert text.startswith(f'before\n{diagram.BEGIN}\n\n```mermaid')
    assert text.endswith(f'\n\n{diagram.END}\nafter\n')
    assert diagram.drawn() in text


# --- what is written ------------------------------------------------------------------------


def spans() -> Iterator[str]:
    yield from re.findall(r'`([^`\n]+)`', re.sub(r'^```.*?^```', '', OWN, flags=re.M | re.S))


def test_every_name_exists() -> None:
    names = {name for span in spans() for name in re.findall(r'\b[a-z]+(?:_[a-z0-9]+)+\b', span)}
    assert {'reaction_time_ms', 'estop_required', 'cmd_vel_timeout', 'follow_gap'} <= names
    theirs = set().union(*NAMES.values())
    known = SOURCES + Path(__file__).read_text(encoding='utf-8').partition('# --- and does')[2]
    unknown = {name for name in names - theirs if not re.search(rf'\b{name}\b', known)}
    assert unknown == set()


def test_every_state_and_response_in_capitals_is_one() -> None:
    words = set(re.findall(r'\b[A-Z]{2,}(?:_[A-Z]+)+\b|\b[A-Z]{4,}\b', OWN))
    known = {state.value for state in State} | {response.name for response in Response}
    assert words - known == {
        'SCHED_FIFO', 'SIGTERM', 'SIGKILL', 'SROS', 'FILE', 'HOURS', 'SMALL', 'EACH', 'EPYC'}


def test_the_ladder_of_responses_is_the_one_that_decides() -> None:
    assert ' < '.join(response.name for response in sorted(Response)) in OWN


def test_every_fallback_is_explained() -> None:
    assert {row[0].strip('`') for row in rows('fallback')} == set(get_args(FallbackKind))
    assert all(policy.fallback.ladder == ('stop',) for policy in POLICIES)


def test_each_promise_is_the_architectures_and_has_its_condition() -> None:
    promises = re.findall(r'^\| (P\d) \|', OWN, re.M)
    assert promises == ['P1', 'P2', 'P3', 'P4', 'P5']
    figures = OWN.partition('<!-- figures: faults -->')
    assert figures[2].count('<!-- end of figures: faults -->') == 1


def test_sizes_are_the_explorers() -> None:
    sizes = {row[0]: row[1] for row in rows('size')}
    assert sizes == {
        'T': f'{EXPLORER.control_period_ns / MS:g} ms',
        'X': f'{EXPLORER.control.allowed_lateness_ms:g} ms',
        'C': f'{EXPLORER.ttl_ns / MS:.0f} ms',
        'H': f'{EXPLORER.control.progress_limit_ms:g} ms',
    }
    longest_s = longest_time_out_s(EXPLORER)
    assert f'explorer: {int(longest_s * 100) / 100:.2f} s' in OWN


def test_every_way_to_prove_it_is_there() -> None:
    targets = set(re.findall(r'^([a-z]+):', (ROOT / 'Makefile').read_text(), re.M))
    named = {word for row in rows('command') for word in re.findall(r'make ([a-z]+)', row[0])}
    assert named == {'test', 'faults', 'traces', 'mutants', 'soak'}
    assert named <= targets


# --- what stands below ----------------------------------------------------------------------

# Read in the sources that docs/safety.md cites: navigation2 at f4108e5 (jazzy, 1.3.13) and 71a1d84
# (kilted, 1.4.2), ros2_controllers at ed360c9 (jazzy, 4.42.1) and 0f8eb14 (kilted, 5.17.0),
# twist_mux at d929f1b with the changelog of 4.5.0.
NAMES = {
    'collision_monitor': {
        'base_frame_id', 'base_shift_correction', 'cmd_vel_in_topic', 'cmd_vel_out_topic',
        'enable_stamped_cmd_vel', 'observation_sources', 'odom_frame_id', 'polygons',
        'source_timeout', 'state_topic', 'stop_pub_timeout', 'transform_tolerance',
        'use_realtime_priority',
    },
    'polygon': {
        'action_type', 'angular_limit', 'enabled', 'footprint_topic', 'linear_limit', 'min_points',
        'points', 'polygon_pub_topic', 'polygon_sub_topic', 'radius', 'simulation_time_step',
        'slowdown_ratio', 'sources_names', 'time_before_collision', 'type', 'visualize',
    },
    'source': {'enabled', 'source_timeout', 'topic', 'type'},
    'twist_mux': {'use_stamped', 'topics', 'locks'},
    'input': {'topic', 'timeout', 'priority'},
    'diff_drive_controller': {
        'base_frame_id', 'cmd_vel_timeout', 'enable_odom_tf', 'left_wheel_names',
        'left_wheel_radius_multiplier', 'odom_frame_id', 'open_loop', 'pose_covariance_diagonal',
        'position_feedback', 'publish_limited_velocity', 'right_wheel_names',
        'right_wheel_radius_multiplier', 'tf_frame_prefix', 'tf_frame_prefix_enable',
        'twist_covariance_diagonal', 'velocity_rolling_window_size', 'wheel_radius',
        'wheel_separation', 'wheel_separation_multiplier', 'linear', 'angular',
    },
    'axis': {
        'max_acceleration', 'max_acceleration_reverse', 'max_deceleration',
        'max_deceleration_reverse', 'max_jerk', 'max_velocity', 'min_jerk', 'min_velocity',
    },
}


def parameters(name: str) -> dict[str, Any]:
    """Return the parameters of one file: of one node, which is called as its file."""
    content = yaml.safe_load((BELOW / f'{name}.yaml').read_text(encoding='utf-8'))
    assert list(content) == [name]
    assert list(content[name]) == ['ros__parameters']
    found: dict[str, Any] = content[name]['ros__parameters']
    return found


MUX, MONITOR, BASE = map(
    parameters, ('twist_mux', 'collision_monitor', 'diff_drive_controller'))


def longest_time_out_s(policy: Policy) -> float:
    """Return after which the base must stop so that it touches nothing when the watchdog dies."""
    ours_s = (policy.control_period_ns + policy.allowed_lateness_ns) / SECOND
    return min(0.5, ours_s + policy.envelope.margin_m / policy.envelope.max_forward_m_s)


def test_every_file_below_is_linked_and_read_here() -> None:
    files = {path.name for path in BELOW.iterdir()}
    assert files == {'twist_mux.yaml', 'collision_monitor.yaml', 'diff_drive_controller.yaml'}
    assert all(f'(../config/below/{name})' in OWN for name in files)


def test_the_names_are_those_of_the_sources() -> None:
    polygons, sources = MONITOR['polygons'], MONITOR['observation_sources']
    assert set(MONITOR) - NAMES['collision_monitor'] == {*polygons, *sources}
    assert all(set(MONITOR[name]) <= NAMES['polygon'] for name in polygons)
    assert all(set(MONITOR[name]) <= NAMES['source'] for name in sources)
    assert set(MUX) <= NAMES['twist_mux']
    for each in (*MUX['topics'].values(), *MUX['locks'].values()):
        assert set(each) == NAMES['input'], 'all three, or it does not start'
    assert set(BASE) <= NAMES['diff_drive_controller']
    assert set(BASE['linear']['x']) | set(BASE['angular']['z']) <= NAMES['axis']


def test_they_are_one_chain_from_the_watchdog_to_the_base() -> None:
    assert MUX['topics']['smallm']['topic'] == 'cmd_vel'
    assert "'cmd_vel', qos.CMD_VEL" in SOURCES, 'the topic of the watchdog'
    assert all(MUX['topics'][name]['topic'] != 'cmd_vel' for name in MUX['topics']
               if name != 'smallm'), 'a second publisher there latches a fault'
    comment = (BELOW / 'twist_mux.yaml').read_text(encoding='utf-8')
    assert f'-r cmd_vel_out:={MONITOR["cmd_vel_in_topic"]}\n' in comment
    assert MONITOR['cmd_vel_out_topic'] == 'diff_drive_controller/cmd_vel', 'its ~/cmd_vel'
    assert '─cmd_vel─► twist_mux ─cmd_vel_mux─► collision_monitor' in OWN


def test_all_take_the_message_that_the_watchdog_sends() -> None:
    robot = yaml.safe_load((ROOT / 'config' / 'robot.yaml').read_text(encoding='utf-8'))
    assert robot['/**']['ros__parameters']['twist_stamped'] is True
    assert MUX['use_stamped'] is True
    assert MONITOR['enable_stamped_cmd_vel'] is True


@pytest.mark.parametrize(
    'policy', [each for each in POLICIES if each.base == 'mobile'], ids=lambda policy: policy.name)
def test_time_outs_fit_between_our_gap_and_the_way_that_is_kept_free(policy: Policy) -> None:
    gap_s = (policy.control_period_ns + policy.allowed_lateness_ns) / SECOND
    base_s = BASE['cmd_vel_timeout']
    assert gap_s < base_s <= longest_time_out_s(policy)
    for each in MUX['topics'].values():
        assert gap_s < each['timeout'] <= base_s


def test_no_guard_is_switched_off_by_zero() -> None:
    inputs = (*MUX['topics'].values(), *MUX['locks'].values())
    times = [each['timeout'] for each in inputs]
    times += [BASE['cmd_vel_timeout'], MONITOR['source_timeout'], MONITOR['stop_pub_timeout']]
    assert all(isinstance(each, float) and each > 0.0 for each in times)


def test_the_emergency_stop_masks_every_input() -> None:
    lock = MUX['locks']['estop']
    assert lock['topic'] == 'estop'
    assert re.search(r"Bool,\s+'estop'", SOURCES), 'what the watchdog listens to'
    assert all(each['priority'] < lock['priority'] <= 255 for each in MUX['topics'].values())
    priorities = [each['priority'] for each in MUX['topics'].values()]
    assert min(priorities) == MUX['topics']['smallm']['priority'] > 0


@pytest.mark.ros
def test_the_emergency_stop_is_silent_as_long_for_both() -> None:
    from smallm_ros.ros.watchdog_node import ESTOP_SILENT_NS
    assert MUX['locks']['estop']['timeout'] == ESTOP_SILENT_NS / SECOND


def test_the_monitors_circle_lies_inside_what_the_envelope_keeps_free() -> None:
    (name,) = MONITOR['polygons']
    circle, robot = MONITOR[name], EXPLORER.robot
    assert (circle['type'], circle['action_type']) == ('circle', 'stop')
    assert robot.radius_m < circle['radius'] < robot.radius_m + EXPLORER.envelope.margin_m
    (source,) = MONITOR['observation_sources']
    scan = EXPLORER.sensors[source]
    assert MONITOR[source]['topic'] == scan.topic
    assert MONITOR['source_timeout'] == scan.stale_after_ns / SECOND


def test_the_base_is_no_faster_and_brakes_no_worse_than_the_envelope_says() -> None:
    rules, linear, angular = EXPLORER.envelope, BASE['linear']['x'], BASE['angular']['z']
    assert linear['max_velocity'] == rules.max_forward_m_s
    assert linear['min_velocity'] == -rules.max_reverse_m_s
    assert -linear['max_deceleration'] >= rules.max_deceleration_m_s2
    assert angular['max_velocity'] == -angular['min_velocity'] == rules.max_turn_rad_s


# --- and does what is said of a base's time-out hold? ---------------------------------------


def touches_when_the_watchdog_dies(seed: int, time_out_s: float) -> bool:
    """Ram whatever is ahead through the gate, end the gate at some moment, let the base time out.

    The base goes on as last told until its time-out, and then brakes as declared.
    """
    rng = np.random.default_rng(seed)
    world, story = PointWorld(rng, SLOW), Story(policy=SLOW)
    story.fields_of_scan = world.scan
    story.until(State.ACTIVE, 3000)
    for tick in range(int(rng.integers(30, 160))):
        if tick % 20 == 0:
            story.command_with = {} if rng.random() < 0.7 else {
                'action': 'left', 'parameters': {}, 'linear_x_m_s': 0.1, 'angular_z_rad_s': 0.5}
        world.move(story.tick().velocity, PERIOD_MS / 1000)
        assert world.clearance_m() > 0.0, 'while it lives'
    touched = False
    for velocity, for_s in ((story.last.velocity, time_out_s), (STOP, 0.6)):
        for _ in range(round(for_s * 100)):
            world.move(velocity, 0.01)
            touched |= world.clearance_m() <= 0.0
    return touched


SLOW = ROUND.model_copy(update={
    'envelope': ROUND.envelope.model_copy(update={'max_forward_m_s': 0.3})})


def test_a_base_that_times_out_soon_enough_touches_nothing_when_the_watchdog_dies() -> None:
    longest_s = longest_time_out_s(SLOW)
    assert longest_s == pytest.approx(0.1 + 0.08 / 0.3)
    assert not any(touches_when_the_watchdog_dies(seed, longest_s) for seed in range(40))


def test_one_that_times_out_late_does_touch() -> None:
    assert any(touches_when_the_watchdog_dies(seed, 4.0) for seed in range(40))
