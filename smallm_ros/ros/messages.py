"""Message classes by the name that a policy file gives them, as rclpy has them.

`convert` has a converter for some of these names and must load where no message package is.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

from smallm_ros.core.errors import OperatorError


def installed(type_name: str) -> bool:
    """Whether the package of `package/msg/Name` is there."""
    try:
        import_module(f'{type_name.partition("/")[0]}.msg')
    except ImportError:
        return False
    return True


def message_class(type_name: str) -> type:
    """Return the class of `package/msg/Name`; OperatorError where it is not installed."""
    package, _, name = type_name.split('/')
    try:
        found: type = getattr(import_module(f'{package}.msg'), name)
    except (ImportError, AttributeError) as err:
        raise OperatorError(f'message type {type_name} is not installed: {err}') from err
    return found


def types_of(type_name: str) -> Mapping[str, str]:
    """Return the types of a message's fields by name: `{'position': 'geometry_msgs/Point'}`."""
    # Every message class has it; rclpy generates them, so that mypy sees a bare type.
    found: Mapping[str, str] = message_class(type_name).get_fields_and_field_types()  # type: ignore[attr-defined]
    return found
