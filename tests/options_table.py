"""The table of every sensor's options in docs/prompts.md, from the declarations themselves.

    python -m tests.options_table            writes it anew
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from smallm_ros.core.sensor import Part, SensorBase
from smallm_ros.core.summary import Sensor

DOCUMENT = Path(__file__).resolve().parent.parent / 'docs' / 'prompts.md'
BEGIN, END = '<!-- options: make it with python -m tests.options_table -->', '<!-- end -->'
HEAD = ('| sensor | option | values | default | what |', '|---|---|---|---|---|')
WORDS = r'^[a-z][a-z0-9_-]{0,31}$'


def table() -> str:
    """Return the table in Markdown."""
    rows = [_row('every sensor', 'type', 'the message, `package/msg/Name`', '', '')]
    rows += _rows('every sensor', SensorBase, skip=('type',))
    told: set[str] = set()
    for kind in _kinds(Sensor):
        schema = kind.model_json_schema()['properties']['type']
        names = schema.get('enum') or [schema.get('const', 'any other')]
        name = '<br>'.join(f'`{each}`' if '/' in each else each for each in names)
        first = inspect.getdoc(kind) or ''
        own = tuple(SensorBase.model_fields)
        rows.append(_row(name, '', '', '', ' '.join(first.split('\n\n')[0].split())))
        rows += _rows('', kind, skip=own, told=told)
    return '\n'.join((*HEAD, *rows))


def _kinds(annotation: Any) -> Iterator[type[SensorBase]]:
    if isinstance(annotation, type) and issubclass(annotation, SensorBase):
        yield annotation
    for each in get_args(annotation):
        yield from _kinds(each)


def _rows(
    sensor: str, kind: type[BaseModel], *, skip: tuple[str, ...] = (), prefix: str = '',
    told: set[str] | None = None,
) -> Iterator[str]:
    schema = kind.model_json_schema(by_alias=True)
    meanings = dict(_meanings(kind))
    needed = schema.get('required', [])
    for field, declared in kind.model_fields.items():
        if field in skip:
            continue
        key = declared.alias or field
        node = schema['properties'][key]
        default = '**required**' if key in needed else _default(node)
        yield _row(sensor, f'`{prefix}{key}`', _values(node), default, meanings.get(field, ''))
        for part in _parts(declared.annotation):
            if told is not None and part.__name__ in told:
                continue
            if told is not None:
                told.add(part.__name__)
            yield from _rows(sensor, part, prefix=f'{prefix}{key}: ', told=told)


def _row(*cells: str) -> str:
    return '| ' + ' | '.join(cell.replace('|', '\\|') for cell in cells) + ' |'


def _default(node: dict[str, Any]) -> str:
    value = node.get('default')
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return ', '.join(str(each.get('name', each.get('word', '…'))) for each in value)
    if value in (None, [], '', {}):
        return ''
    return f'`{str(value).lower() if isinstance(value, bool) else value}`'


def _values(node: dict[str, Any]) -> str:
    if 'anyOf' in node:
        return ' or '.join(filter(None, map(_values, node['anyOf'])))
    if 'enum' in node:
        return ', '.join(f'`{each}`' for each in node['enum'])
    if 'const' in node:
        return f'`{node["const"]}`'
    if '$ref' in node:
        return node['$ref'].rpartition('/')[2]
    match node.get('type'):
        case 'null':
            return ''
        case 'boolean':
            return '`true`, `false`'
        case 'array':
            most = f', at most {node["maxItems"]}' if 'maxItems' in node else ''
            return f'list of {_values(node.get("items", {})) or "values"}{most}'
        case 'object':
            return 'mapping'
        case 'string':
            if node.get('pattern') == WORDS:
                return 'word'
            return f'text, at most {node["maxLength"]}' if 'maxLength' in node else 'text'
    bounds = [
        f'{sign} {node[key]:g}' for key, sign in (
            ('exclusiveMinimum', '>'), ('minimum', '≥'), ('exclusiveMaximum', '<'),
            ('maximum', '≤')) if key in node
    ]
    return ', '.join(bounds) or ('whole number' if node.get('type') == 'integer' else 'number')


def _parts(annotation: Any) -> Iterator[type[Part]]:
    if isinstance(annotation, type) and issubclass(annotation, Part):
        yield annotation
    for each in get_args(annotation):
        yield from _parts(each)


def _meanings(kind: type[BaseModel]) -> Iterator[tuple[str, str]]:
    """Yield (field, the docstring below it), of the class and of what it inherits."""
    for each in reversed(kind.__mro__):
        if not (isinstance(each, type) and issubclass(each, Part)) or each is Part:
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(each))).body[0]
        assert isinstance(body, ast.ClassDef)
        waiting: list[str] = []
        for node in body.body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                waiting.append(node.target.id)
            elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                # one docstring below two fields is for both: mount_x_m, mount_y_m
                for name in waiting[-2:] if waiting[-1:] and waiting[-1].startswith(
                        'mount_y') else waiting[-1:]:
                    yield name, ' '.join(str(node.value.value).split())
                waiting.clear()


def written(text: str) -> str:
    """Return a document with its table made anew."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f'{before}{BEGIN}\n\n{table()}\n\n{END}{after}'


if __name__ == '__main__':
    DOCUMENT.write_text(written(DOCUMENT.read_text(encoding='utf-8')), encoding='utf-8')
