"""The embedded simulation: sim_node in the robot's place, and the rest as on a robot.

    ros2 launch smallm_ros simulation.launch.py

Takes the arguments of robot.launch.py too. `auto_arm` exists here alone: a robot is armed by a
person.
"""

from pathlib import Path

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, GroupAction, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node, SetParameter
from launch_ros.parameter_descriptions import ParameterValue

SHARE = Path(__file__).absolute().parent.parent


def executable(name: str) -> str:
    """Return the executable of a colcon installation, or the name, which pip put on the PATH."""
    installed = SHARE.parent.parent / 'lib' / 'smallm_ros' / name
    return str(installed) if installed.exists() else name


def generate_launch_description() -> LaunchDescription:
    """Describe the simulator beside the robot's three processes."""
    return LaunchDescription([
        DeclareLaunchArgument(
            'policy', default_value=str(SHARE / 'config' / 'policies' / 'explorer.yaml'),
            description='the policy file (smallm check FILE)',
        ),
        DeclareLaunchArgument(
            'params_file', default_value=str(SHARE / 'config' / 'simulation.yaml'),
            description='ROS parameters of the nodes; what is an argument here wins',
        ),
        DeclareLaunchArgument('use_sim_time', default_value='true', choices=['true', 'false'],
                              description='take the time of sensor data from /clock'),
        DeclareLaunchArgument('auto_arm', default_value='true', choices=['true', 'false'],
                              description='drive as soon as everything is well, unasked'),
        DeclareLaunchArgument(
            'world', default_value=str(SHARE / 'config' / 'worlds' / 'room.sdf'),
            description='an SDF world with the robot in it',
        ),
        DeclareLaunchArgument('seed', default_value='0', description='of sensor noise'),
        DeclareLaunchArgument('namespace', default_value='', description='of the nodes'),
        Node(
            executable=executable('sim_node'),
            name='sim_node',
            namespace=LaunchConfiguration('namespace'),
            output='screen',
            parameters=[
                LaunchConfiguration('params_file'),
                {
                    'world': ParameterValue(LaunchConfiguration('world'), value_type=str),
                    'seed': ParameterValue(LaunchConfiguration('seed'), value_type=int),
                },
            ],
        ),
        GroupAction([
            SetParameter(
                'auto_arm', ParameterValue(LaunchConfiguration('auto_arm'), value_type=bool)
            ),
            IncludeLaunchDescription(
                PythonLaunchDescriptionSource(str(SHARE / 'launch' / 'robot.launch.py')),
                # Other arguments pass by themselves; what an included file requires does not.
                launch_arguments={'policy': LaunchConfiguration('policy')}.items(),
            ),
        ]),
    ])
