"""A robot: the engine with its model, the watchdog and the policy node.

    ros2 launch smallm_ros robot.launch.py policy:=/path/to/policy.yaml model:=NAME

The watchdog publishes stop until someone arms it. A node that dies is started again; the engine is
not, because `smallm_engine` starts its own worker again and gives up on purpose after five deaths.
The policy node configures and activates itself (`autostart`): a respawned node then needs nobody,
where a `configure` sent from here would reach the dead one, which discovery still lists.
"""

from pathlib import Path

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, ExecuteProcess, OpaqueFunction
from launch.conditions import IfCondition
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

SHARE = Path(__file__).absolute().parent.parent
RESPAWN_DELAY_S = 0.5


def executable(name: str) -> str:
    """Return the executable of a colcon installation, or the name, which pip put on the PATH."""
    installed = SHARE.parent.parent / 'lib' / 'smallm_ros' / name
    return str(installed) if installed.exists() else name


def engine(context: LaunchContext) -> list[ExecuteProcess]:
    """Return the engine's process with the command line that the arguments ask for."""
    def argument(name: str) -> str:
        return LaunchConfiguration(name).perform(context)

    command = [executable('smallm_engine')]
    for flag in ('model', 'template', 'socket', 'n_gpu_layers', 'context', 'kv_type', 'threads',
                 'check_ms'):
        if argument(flag):
            command += ['--' + flag.replace('_', '-'), argument(flag)]
    if IfCondition(LaunchConfiguration('use_mlock')).evaluate(context):
        command.append('--use-mlock')
    return [ExecuteProcess(cmd=command, name='smallm_engine', output='screen')]


def node(name: str, **parameters: object) -> Node:
    """Return one of our nodes, started again when it dies."""
    return Node(
        executable=executable(name),
        name=name,
        namespace=LaunchConfiguration('namespace'),
        output='screen',
        respawn=LaunchConfiguration('respawn'),
        respawn_delay=RESPAWN_DELAY_S,
        parameters=[
            LaunchConfiguration('params_file'),
            {
                'policy': text('policy'),
                'use_sim_time': ParameterValue(
                    LaunchConfiguration('use_sim_time'), value_type=bool
                ),
                **parameters,
            },
        ],
    )


def text(name: str) -> ParameterValue:
    """Return an argument as a string parameter, even where it looks like a number."""
    return ParameterValue(LaunchConfiguration(name), value_type=str)


def generate_launch_description() -> LaunchDescription:
    """Describe the three processes and their arguments."""
    switch = {'choices': ['true', 'false']}
    return LaunchDescription([
        DeclareLaunchArgument('policy', description='the policy file (smallm check FILE)'),
        DeclareLaunchArgument(
            'params_file', default_value=str(SHARE / 'config' / 'robot.yaml'),
            description='ROS parameters of the nodes; what is an argument here wins',
        ),
        DeclareLaunchArgument('namespace', default_value='', description='of the nodes'),
        DeclareLaunchArgument('use_sim_time', default_value='false', **switch,
                              description='take the time of sensor data from /clock'),
        DeclareLaunchArgument('respawn', default_value='true', **switch,
                              description='start a node again when it dies'),
        DeclareLaunchArgument('record_dir', default_value='',
                              description='where decision records go; empty: none are kept'),
        DeclareLaunchArgument('engine', default_value='true', **switch,
                              description='false: use the engine that already runs'),
        DeclareLaunchArgument('socket', default_value='',
                              description="the engine's socket; empty: the user's default"),
        DeclareLaunchArgument('model', default_value='',
                              description='a name of `smallm models list`, or a GGUF file; '
                                          'empty: the embedded model'),
        DeclareLaunchArgument('template', default_value='',
                              description='chat template of a GGUF that the registry does not '
                                          'know; empty: told from its vocabulary'),
        DeclareLaunchArgument('n_gpu_layers', default_value='-1',
                              description='layers on the GPU: -1 all, 0 none'),
        DeclareLaunchArgument('use_mlock', default_value='false', **switch,
                              description='keep the model in memory, never swapped'),
        DeclareLaunchArgument('context', default_value='4096', description='tokens'),
        DeclareLaunchArgument('kv_type', default_value='f16', choices=['f16', 'q8_0', 'q4_0'],
                              description='type of the KV cache'),
        DeclareLaunchArgument('threads', default_value='',
                              description='CPU threads; empty: physical cores less one'),
        DeclareLaunchArgument('check_ms', default_value='50',
                              description='longest batch of work that can wait'),
        node('watchdog_node'),
        node('policy_node', autostart=True, socket=text('socket'), record_dir=text('record_dir')),
        OpaqueFunction(function=engine, condition=IfCondition(LaunchConfiguration('engine'))),
    ])
