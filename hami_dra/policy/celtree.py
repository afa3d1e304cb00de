"""From a parse tree of cel-python's grammar to one function from variables to a value.

The rules are CEL's: ``||``, ``&&``, ``exists`` and ``all`` absorb the failure of a part if another
part decides; a key that is missing is a failure, unless it is asked for with ``has`` or ``?``.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from hami_dra.policy.celfunctions import GLOBALS, METHODS, SPACES, Functions
from hami_dra.policy.celtext import OPTIONAL_FIELD, OPTIONAL_INDEX, UnknownError
from hami_dra.policy.celvalues import CelError, Optional, calculate, compare, equal, name_type

Scope = Mapping[str, Any]
Step = Callable[[Scope], Any]
Names = frozenset[str]
Node = Any
"""A tree or a token of the parser (lark)."""

_MACROS: Final = frozenset({"exists", "all", "exists_one", "existsOne", "map", "filter", "optMap"})


class Domains(dict[str, Any]):
    """Attributes or capacities by domain: a domain that is not there is an empty map."""

    def __missing__(self, key: str) -> Any:
        return {}


class Compiler:
    """Turns a parse tree into one function from variables to a value."""

    def __init__(self, strings: Sequence[str], functions: Functions) -> None:
        self._strings = strings
        self._functions = {**GLOBALS, **functions}
        self._methods = {**METHODS, **functions}

    def build(self, node: Node, names: Names) -> Step:
        """Return the step of a node. Raises `UnknownError` for what is not known here."""
        build = getattr(self, f"_{node.data}", None)
        if build is not None:
            step: Step = build(node, names)
            return step
        if len(node.children) == 1:
            return self.build(node.children[0], names)
        raise UnknownError(f"{str(node.data).replace('_', ' ')} cannot be evaluated here")

    # --- operators

    def _expr(self, node: Node, names: Names) -> Step:
        steps = [self.build(child, names) for child in node.children]
        if len(steps) == 1:
            return steps[0]
        condition, yes, no = steps
        return lambda scope: yes(scope) if _truth(condition(scope)) else no(scope)

    def _conditionalor(self, node: Node, names: Names) -> Step:
        return self._either(node, names, decisive=True)

    def _conditionaland(self, node: Node, names: Names) -> Step:
        return self._either(node, names, decisive=False)

    def _either(self, node: Node, names: Names, *, decisive: bool) -> Step:
        steps = [self.build(child, names) for child in node.children]
        if len(steps) == 1:
            return steps[0]
        return lambda scope: _decide((functools.partial(each, scope) for each in steps), decisive)

    def _relation(self, node: Node, names: Names) -> Step:
        if len(node.children) == 1:
            return self.build(node.children[0], names)
        operation = _RELATIONS[str(node.children[0].data)]
        return self._binary(node, names, operation)

    def _addition(self, node: Node, names: Names) -> Step:
        if len(node.children) == 1:
            return self.build(node.children[0], names)
        sign = str(node.children[0].data).rpartition("_")[2]
        return self._binary(node, names, functools.partial(calculate, sign))

    _multiplication = _addition

    def _binary(self, node: Node, names: Names, operation: Callable[[Any, Any], Any]) -> Step:
        left = self.build(node.children[0].children[0], names)
        right = self.build(node.children[1], names)
        return lambda scope: operation(left(scope), right(scope))

    def _unary(self, node: Node, names: Names) -> Step:
        if len(node.children) == 1:
            return self.build(node.children[0], names)
        operand = self.build(node.children[1], names)
        if node.children[0].data == "unary_not":
            return lambda scope: not _truth(operand(scope))
        return lambda scope: calculate("sub", 0, operand(scope))

    # --- members

    def _member_dot(self, node: Node, names: Names) -> Step:
        member, key = self.build(node.children[0], names), str(node.children[1])
        return lambda scope: _look_up(member(scope), key)

    def _member_index(self, node: Node, names: Names) -> Step:
        member, index = (self.build(child, names) for child in node.children)
        return lambda scope: _look_up(member(scope), index(scope))

    def _member_dot_arg(self, node: Node, names: Names) -> Step:
        name, arguments = str(node.children[1]), _list_arguments(node, 2)
        space = _read_name(node.children[0])
        if space == "cel" and name == "bind" and "cel" not in names:
            return self._bind(arguments, names)
        if space in SPACES and space not in names:
            return self._call(name, SPACES[space], arguments, names)
        member = self.build(node.children[0], names)
        if name in _MACROS:
            return self._macro(name, member, arguments, names)
        if name in {OPTIONAL_FIELD, OPTIONAL_INDEX}:
            index = self.build(arguments[0], names)
            return lambda scope: _look_up_if_any(member(scope), index(scope))
        return self._call(name, self._methods, arguments, names, member)

    def _ident_arg(self, node: Node, names: Names) -> Step:
        name, arguments = str(node.children[0]), _list_arguments(node, 1)
        if name == "has":
            return self._has(arguments, names)
        return self._call(name, self._functions, arguments, names)

    def _call(
        self,
        name: str,
        functions: Functions,
        arguments: Sequence[Node],
        names: Names,
        *receiver: Step,
    ) -> Step:
        if name not in functions:
            raise UnknownError(f"the function {name} cannot be evaluated here")
        overloads = functions[name]
        steps = [*receiver, *(self.build(argument, names) for argument in arguments)]

        def call(scope: Scope) -> Any:
            values = [step(scope) for step in steps]
            for overload in overloads:
                if overload.accepts(values):
                    return overload.call(*values)
            raise CelError(f"no such overload: {name}({', '.join(map(name_type, values))})")

        return call

    def _has(self, arguments: Sequence[Node], names: Names) -> Step:
        field = _descend(arguments[0]) if len(arguments) == 1 else None
        if field is None or field.data != "member_dot":
            raise UnknownError("has() of something that is no field cannot be evaluated here")
        member, key = self.build(field.children[0], names), str(field.children[1])
        return lambda scope: bool(_look_up_if_any(member(scope), key).values)

    # --- variables

    def _bind(self, arguments: Sequence[Node], names: Names) -> Step:
        variable = _read_variable(arguments, 3)
        value = self.build(arguments[1], names)
        body = self.build(arguments[2], names | {variable})
        return lambda scope: body({**scope, variable: value(scope)})

    def _macro(self, name: str, member: Step, arguments: Sequence[Node], names: Names) -> Step:
        most = 3 if name == "map" else 2
        variable = _read_variable(arguments, 2, most)
        *conditions, body = (self.build(each, names | {variable}) for each in arguments[1:])
        if name == "optMap":
            return lambda scope: Optional(
                tuple(body({**scope, variable: each}) for each in _list_values(member(scope)))
            )

        def scopes(scope: Scope) -> Iterator[Scope]:
            each: Iterable[Scope] = (
                {**scope, variable: item} for item in _list_items(member(scope))
            )
            return (
                inner for inner in each if all(_truth(condition(inner)) for condition in conditions)
            )

        if name in {"exists", "all"}:
            return lambda scope: _decide(
                (functools.partial(body, inner) for inner in scopes(scope)), name == "exists"
            )
        if name == "map":
            return lambda scope: [body(inner) for inner in scopes(scope)]
        if name == "filter":
            return lambda scope: [inner[variable] for inner in scopes(scope) if _truth(body(inner))]
        return lambda scope: sum(_truth(body(inner)) for inner in scopes(scope)) == 1

    def _ident(self, node: Node, names: Names) -> Step:
        name = str(node.children[0])
        if name not in names:
            raise UnknownError(f"{name!r} is not known here")
        return lambda scope: scope[name]

    # --- literals

    def _list_lit(self, node: Node, names: Names) -> Step:
        steps = [self.build(each, names) for each in _list_arguments(node, 0)]
        return lambda scope: [step(scope) for step in steps]

    def _map_lit(self, node: Node, names: Names) -> Step:
        steps = [self.build(each, names) for each in _list_arguments(node, 0)]
        return lambda scope: {
            _check_key(key(scope)): value(scope)
            for key, value in zip(steps[::2], steps[1::2], strict=True)
        }

    def _literal(self, node: Node, names: Names) -> Step:
        del names
        token = node.children[0]
        value = self._read_literal(str(token.type), str(token))
        return lambda _: value

    def _read_literal(self, kind: str, text: str) -> Any:
        if kind == "STRING_LIT":
            return self._strings[int(text[1:-1])]
        if kind == "BOOL_LIT":
            return text == "true"
        if kind == "FLOAT_LIT":
            return float(text)
        if kind in {"INT_LIT", "UINT_LIT"}:
            return int(text.rstrip("uU"), 16 if "x" in text else 10)
        if kind == "NULL_LIT":
            return None
        raise UnknownError(f"{text!r} cannot be evaluated here")


# --- the tree


def _list_arguments(node: Node, before: int) -> Sequence[Node]:
    return node.children[before].children if len(node.children) > before else ()


def _descend(node: Node) -> Node:
    """Return the first node that has more to say than which rule it followed."""
    while hasattr(node, "data") and len(node.children) == 1 and node.data != "ident":
        node = node.children[0]
    return node if hasattr(node, "data") else None


def _read_name(node: Node) -> str:
    inner = _descend(node)
    return str(inner.children[0]) if inner is not None and inner.data == "ident" else ""


def _read_variable(arguments: Sequence[Node], least: int, most: int = 0) -> str:
    if not least <= len(arguments) <= max(least, most):
        raise UnknownError(f"a macro with {len(arguments)} arguments cannot be evaluated here")
    variable = _read_name(arguments[0])
    if not variable:
        raise UnknownError("cannot be parsed here: a macro's first argument is not a name")
    return variable


# --- values


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise CelError(f"no such overload: a {name_type(value)} is neither true nor false")
    return value


def _decide(steps: Iterable[Callable[[], Any]], decisive: bool) -> bool:  # noqa: FBT001 - which of the two
    """Return the decisive answer if any step gives it, however many others fail.

    Raises:
        CelError: None does, and one fails.
    """
    failure: CelError | None = None
    for step in steps:
        try:
            if _truth(step()) is decisive:
                return decisive
        except CelError as error:
            failure = failure or error
    if failure is not None:
        raise failure
    return not decisive


def _look_up(member: Any, key: Any) -> Any:
    if isinstance(member, Optional):
        return _look_up_if_any(member, key)
    if isinstance(member, dict):
        _check_key(key)
        try:
            return member[key]
        except KeyError:
            raise CelError(f"no such key: {key}") from None
    if isinstance(member, list) and type(key) is int:
        if not 0 <= key < len(member):
            raise CelError(f"index out of bounds: {key}")
        return member[key]
    raise CelError(f"no such overload: {name_type(member)}[{name_type(key)}]")


def _look_up_if_any(member: Any, key: Any) -> Optional:
    if isinstance(member, Optional):
        return Optional(
            tuple(v for each in member.values for v in _look_up_if_any(each, key).values)
        )
    if isinstance(member, Domains):
        return Optional((member[key],))
    if isinstance(member, dict):
        return Optional((member[key],)) if _check_key(key) in member else Optional()
    if isinstance(member, list) and type(key) is int:
        return Optional((member[key],)) if 0 <= key < len(member) else Optional()
    raise CelError(f"no such overload: {name_type(member)}[{name_type(key)}]")


def _check_key(key: Any) -> Any:
    if type(key) not in {str, int, bool}:
        raise CelError(f"a {name_type(key)} cannot be the key of a map")
    return key


def _list_items(value: Any) -> Iterable[Any]:
    if not isinstance(value, list | dict):
        raise CelError(f"no such overload: a {name_type(value)} has no elements")
    return value


def _list_values(value: Any) -> tuple[Any, ...]:
    if not isinstance(value, Optional):
        raise CelError(f"no such overload: a {name_type(value)} is not optional")
    return value.values


def _is_in(item: Any, container: Any) -> bool:
    if isinstance(container, dict):
        return _check_key(item) in container
    if isinstance(container, list):
        return any(equal(each, item) for each in container)
    raise CelError(f"no such overload: {name_type(item)} in {name_type(container)}")


_RELATIONS: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    "relation_lt": lambda a, b: compare(a, b) < 0,
    "relation_le": lambda a, b: compare(a, b) <= 0,
    "relation_gt": lambda a, b: compare(a, b) > 0,
    "relation_ge": lambda a, b: compare(a, b) >= 0,
    "relation_eq": equal,
    "relation_ne": lambda a, b: not equal(a, b),
    "relation_in": _is_in,
}
