"""An SDF file as elements that know their line, and the words of SDF that are understood here.

Three kinds of word: read, harmless to leave out (visuals, lights, GUI), and all others, which are
refused by file, line and name: a world that is simulated differently from what the file says is
worse than one that does not load. No DTD and no entities: the file comes from outside.
"""

from __future__ import annotations

import difflib
import math
import xml.parsers.expat
from collections.abc import Iterator
from dataclasses import dataclass, field

from smallm_ros.core.errors import WorldError

MAX_FILE_BYTES = 1024 * 1024
MAX_ELEMENTS = 20_000
MAX_DEPTH = 32
MAX_ABSOLUTE = 1e17
"""SDF writes "no limit" as 1e16; nothing larger means anything."""

READ: dict[str, frozenset[str]] = {name: frozenset(words.split()) for name, words in {
    'sdf': 'world',
    'world': 'physics gravity model',
    'physics': 'max_step_size',
    'model': 'pose static link joint model plugin',
    'link': 'pose inertial collision sensor',
    'inertial': 'pose mass inertia',
    'inertia': 'ixx ixy ixz iyy iyz izz',
    'collision': 'pose geometry surface',
    'geometry': 'box cylinder sphere plane',
    'box': 'size',
    'cylinder': 'radius length',
    'sphere': 'radius',
    'plane': 'normal size',
    'surface': 'friction',
    'friction': 'ode',
    'ode': 'mu',
    'joint': 'pose parent child axis',
    'axis': 'xyz limit dynamics',
    'limit': 'lower upper effort',
    'dynamics': 'damping friction spring_reference spring_stiffness',
    'sensor': 'pose update_rate lidar gz_frame_id',
    'lidar': 'scan range noise',
    'scan': 'horizontal vertical',
    'horizontal': 'samples min_angle max_angle',
    'vertical': 'samples',
    'range': 'min max',
    'noise': 'type mean stddev',
}.items()}
"""For each element that is read, its children that are read too."""

HARMLESS: dict[str, frozenset[str]] = {name: frozenset(words.split()) for name, words in {
    'world': 'atmosphere audio gui light magnetic_field plugin scene spherical_coordinates wind',
    'physics': 'bullet dart max_contacts ode real_time_factor real_time_update_rate simbody',
    'model': 'allow_auto_disable enable_wind self_collide',
    'link': 'audio_sink audio_source battery enable_wind light must_be_base_link '
            'particle_emitter projector self_collide visual',
    'inertial': 'fluid_added_mass',
    'collision': 'laser_retro max_contacts',
    'surface': 'bounce contact soft_contact',
    'friction': 'bullet torsional',
    'ode': 'fdir1 mu2',
    'joint': 'physics sensor',
    'limit': 'dissipation stiffness velocity',
    'sensor': 'always_on enable_metrics plugin topic visualize',
    'lidar': 'visibility_mask',
    'horizontal': 'resolution',
    'vertical': 'max_angle min_angle resolution',
    'range': 'resolution',
}.items()}
"""For each element that is read, its children that change nothing that is simulated here."""


@dataclass(slots=True)
class Element:
    """One XML element, with the line that it starts on."""

    source: str
    tag: str
    attributes: dict[str, str]
    line: int
    text: str = ''
    children: list[Element] = field(default_factory=list)

    @property
    def label(self) -> str:
        """The element as an error names it: `collision 'c1'`."""
        name = self.attributes.get('name')
        return f'<{self.tag}> {name!r}' if name else f'<{self.tag}>'

    def error(self, what: str) -> WorldError:
        """Return an error that names the file, the line and this element."""
        return WorldError(f'{self.source}:{self.line}: {self.label}: {what}')

    def check_words(self) -> None:
        """Refuse a child that is neither read nor harmless."""
        read, harmless = READ[self.tag], HARMLESS.get(self.tag, frozenset())
        for child in self.children:
            if child.tag in read or child.tag in harmless or ':' in child.tag:
                continue
            close = difflib.get_close_matches(child.tag, read | harmless, n=1)
            hint = f'; did you mean <{close[0]}>?' if close else ''
            raise child.error(f'not simulated in <{self.tag}>{hint} Known: '
                              f'{", ".join(sorted(read))}')

    def name(self) -> str:
        """Return the name attribute, which must be there and hold no `::`."""
        name = self.attributes.get('name', '').strip()
        if not name or '::' in name or len(name) > 100:
            raise self.error(f'a name of 1 to 100 characters without "::" is needed, not {name!r}')
        return name

    def all(self, tag: str) -> Iterator[Element]:
        """Yield the children with this tag, in the order of the file."""
        return (child for child in self.children if child.tag == tag)

    def find(self, tag: str) -> Element | None:
        """Return the only child with this tag, or None; two are an error."""
        found = list(self.all(tag))
        if len(found) > 1:
            raise found[1].error(f'stands twice in {self.label}, first on line {found[0].line}')
        return found[0] if found else None

    def need(self, tag: str) -> Element:
        """Return the only child with this tag; none is an error."""
        found = self.find(tag)
        if found is None:
            raise self.error(f'<{tag}> is missing')
        return found

    def word(self) -> str:
        """Return the text, which must not be empty."""
        text = self.text.strip()
        if not text:
            raise self.error('is empty')
        return text

    def numbers(self, count: int) -> tuple[float, ...]:
        """Return exactly `count` finite numbers from the text."""
        words = self.text.split()
        if len(words) != count:
            raise self.error(f'{count} numbers are needed, not {self.text.strip()!r:.60}')
        return tuple(self._number(word) for word in words)

    def _number(self, word: str) -> float:
        try:
            value = float(word)
        except ValueError:
            raise self.error(f'{word!r:.40} is no number') from None
        if not math.isfinite(value):
            raise self.error(f'{word!r} is not a finite number')
        if abs(value) > MAX_ABSOLUTE:
            raise self.error(f'{word!r} is beyond {MAX_ABSOLUTE:g}')
        return value

    def number(
        self, tag: str, default: float | None = None, *, least: float | None = None,
        above: float | None = None, most: float | None = None,
    ) -> float:
        """Return the number in the child `tag`, within its limits; `default` None: needed."""
        child = self.find(tag)
        if child is None:
            if default is None:
                raise self.error(f'<{tag}> is missing')
            return default
        value = child.numbers(1)[0]
        if above is not None and not value > above:
            raise child.error(f'{value:g} must be more than {above:g}')
        if least is not None and value < least:
            raise child.error(f'{value:g} must be at least {least:g}')
        if most is not None and value > most:
            raise child.error(f'{value:g} must be at most {most:g}')
        return value

    def flag(self, tag: str) -> bool:
        """Return the boolean in the child `tag`; False when it is not there."""
        child = self.find(tag)
        if child is None:
            return False
        word = child.word().lower()
        if word not in ('true', 'false', '1', '0'):
            raise child.error(f'true or false is needed, not {word!r:.40}')
        return word in ('true', '1')


def parse(data: bytes, source: str) -> Element:
    """Return the root element of an XML file; WorldError with file and line otherwise."""
    if len(data) > MAX_FILE_BYTES:
        raise WorldError(
            f'{source}:1: {len(data)} bytes, a world file has at most {MAX_FILE_BYTES}')
    parser = xml.parsers.expat.ParserCreate()
    parser.buffer_text = True
    open_elements: list[Element] = []
    roots: list[Element] = []
    count = 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal count
        count += 1
        element = Element(source, tag, attributes, parser.CurrentLineNumber)
        if count > MAX_ELEMENTS:
            raise element.error(f'more than {MAX_ELEMENTS} elements')
        if len(open_elements) >= MAX_DEPTH:
            raise element.error(f'nested more than {MAX_DEPTH} deep')
        (open_elements[-1].children if open_elements else roots).append(element)
        open_elements.append(element)

    def end(_tag: str) -> None:
        open_elements.pop()

    def text(characters: str) -> None:
        open_elements[-1].text += characters

    def doctype(*_: object) -> None:
        raise WorldError(f'{source}:{parser.CurrentLineNumber}: a DOCTYPE is not read: '
                         'SDF has none')

    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = text
    parser.StartDoctypeDeclHandler = doctype
    try:
        parser.Parse(data, True)
    except (xml.parsers.expat.ExpatError, ValueError, LookupError) as err:
        line = getattr(err, 'lineno', None) or parser.CurrentLineNumber
        raise WorldError(f'{source}:{line}: not XML: {err}') from err
    return roots[0]
