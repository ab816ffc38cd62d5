"""What the next token of an answer may be: an end of thoughts, a call that must be made, a document, no calls.

Each is a ``Constraint``; ``Constraints`` are those of one answer, taken together. Something that must be written is a
set of texts, of which the answer has to follow one: a single one leaves no choice, several tools' heads leave the model
to choose the tool and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from mlx_delta.chat.forced import ForcedCall
from mlx_delta.chat.parse import OutputParser
from mlx_delta.chat.settings import ChatSettings
from mlx_delta.chat.tools import ToolCall, parameter_schemas
from mlx_delta.engine.sample import Allowed
from mlx_delta.errors import ArgumentError
from mlx_delta.text.grammar import JsonGrammar
from mlx_delta.text.tokenizer import Tokenizer

_ON = "\n\n"  # the template's own way on from thoughts


@dataclass
class Output:
    """The answer so far, as constraints see it.

    tail: its last character as written. left_thoughts: the last token ended thoughts. call_due: a call must be made and
    has not begun. call_begun: no document comes any more. written: text of the answer that the prompt ends with.
    """

    parser: OutputParser
    thinking_tokens: int = 0
    tail: str = ""
    left_thoughts: bool = False
    call_due: bool = False
    call_begun: bool = False
    written: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)


class Constraint:
    """One thing that an answer is held to; by default it holds it to nothing.

    verbatim: what is written now is text, whatever tags it holds.
    """

    verbatim = False

    def texts(self, output: Output) -> list[str]:
        """Texts of which the answer has to go on with one, beginning now; [] leaves it free. Asked outside of calls."""
        return []

    def paths(self, output: Output) -> list[list[int]]:
        """The same as tokens, asked inside of calls."""
        return []

    def begin(self, output: Output) -> None:
        """One of the ``texts`` comes now."""

    def allowed(self, output: Output) -> Allowed | None:
        """What the next token has to be one of; None leaves it free."""
        return None

    def banned(self, output: Output) -> set[int]:
        """Ids that must not come for now; unlike ``allowed`` they cost nothing where they are not chosen anyway."""
        return set()

    def push(self, token: int, output: Output) -> None:
        """A token comes that was not of such a text; ``output`` is what it was before."""

    def done(self, output: Output) -> bool:
        """Whether the answer is complete by this."""
        return False


class ThinkingBudget(Constraint):
    """Thoughts are ended after so many tokens, but for a call among them, which ends them by itself."""

    def __init__(self, budget: int, closing: str) -> None:
        self._budget, self._close = budget, closing + _ON

    def texts(self, output: Output) -> list[str]:
        if not output.parser.thinking or output.thinking_tokens < self._budget:
            return []
        return [self._close if output.tail == "\n" else "\n" + self._close]


class NoCall(Constraint):
    """No tool is called."""

    def __init__(self, call: set[int]) -> None:
        self._call = call

    def banned(self, output: Output) -> set[int]:
        return self._call


class RequiredCall(Constraint):
    """A call by one of ``heads`` is made, once thoughts are over, and completed. single: and the answer ends with it.

    call, ends: ids that begin a call, and that end an answer. forced: how a call goes on.
    """

    def __init__(
        self, heads: Sequence[str], call: set[int], ends: set[int], forced: ForcedCall, *, single: bool
    ) -> None:
        self._heads = heads
        self._call, self._ends, self._forced, self._single = call, ends, forced, single

    def texts(self, output: Output) -> list[str]:
        if not output.call_due or output.parser.thinking:
            return []
        return [(_ON if output.left_thoughts or output.written else "") + head for head in self._heads]

    def begin(self, output: Output) -> None:
        output.call_due, output.call_begun = False, True

    def paths(self, output: Output) -> list[list[int]]:
        reader = output.parser.reader
        if reader is None or output.call_due or output.parser.called:
            return []
        return self._forced.paths(reader, output.tail)

    def banned(self, output: Output) -> set[int]:
        banned = self._call if output.call_due else set()  # not yet: thoughts end by their own tag first
        reader = output.parser.reader
        complete = output.parser.called or (not output.call_due and reader is not None and reader.may_end)
        return banned if complete else banned | self._ends

    def done(self, output: Output) -> bool:
        return self._single and output.parser.called


class Document(Constraint):
    """The text is a JSON document; thoughts are free, and where tools are offered the first token after them begins a
    call or the document.

    call: as above. more: what may follow a call, where no document comes any more.
    """

    def __init__(self, grammar: JsonGrammar, call: set[int], more: set[int], ends: set[int], *, tools: bool) -> None:
        self._grammar = grammar
        self._call, self._more, self._ends = call, more | ends, ends
        self._tools = tools

    def texts(self, output: Output) -> list[str]:
        return [_ON] if output.left_thoughts and not output.parser.thinking else []

    def go_on(self, tokens: Sequence[int], written: str) -> None:
        """Begin behind what is written. Raises: ArgumentError where no document begins so."""
        self.verbatim = True
        for token in tokens:
            if not self._grammar.allowed()[token]:
                raise ArgumentError(f"messages: expected the beginning of a JSON document, found {written!r:.80}")
            self._grammar.push(token)

    def allowed(self, output: Output) -> Allowed | None:
        if output.parser.thinking or output.parser.calling:
            return None
        if output.call_begun or output.tool_calls:
            return self._more
        allowed = self._grammar.allowed()
        if self._tools and self._call and not self.verbatim:
            allowed = allowed.copy()
            allowed[list(self._call)] = True
        return allowed

    def banned(self, output: Output) -> set[int]:
        call = set() if self._tools else self._call
        to_come = output.parser.thinking and not output.parser.drafted
        return call | self._ends if to_come else call

    def push(self, token: int, output: Output) -> None:
        if output.parser.thinking or output.parser.calling:
            return
        if token in self._call and not self.verbatim:
            output.call_begun = True
        elif not output.call_begun and not output.tool_calls:
            self.verbatim = True
            self._grammar.push(token)

    def done(self, output: Output) -> bool:
        return self.verbatim and self._grammar.done


class Constraints:
    """Those of one answer. ``begin`` after ``output`` has been brought up to date, ``push`` before."""

    def __init__(self, tokenizer: Tokenizer, settings: ChatSettings, output: Output) -> None:
        self._tokenizer = tokenizer
        self._output = output
        self._all = _constraints(tokenizer, settings, output.written)
        self._forced: list[list[int]] = []  # what the answer may go on with; [] leaves it free
        output.call_due = bool(settings.forced_names)
        self.begin()

    @property
    def verbatim(self) -> bool:
        """Whether what is written now is text, whatever tags it holds."""
        return any(one.verbatim for one in self._all)

    @property
    def done(self) -> bool:
        """Whether the answer is complete."""
        return any(one.done(self._output) for one in self._all)

    def allowed(self) -> Allowed | None:
        """What the next token has to be one of; None leaves it free."""
        if self._forced:
            return {path[0] for path in self._forced}
        found = (one.allowed(self._output) for one in self._all)
        return next((allowed for allowed in found if allowed is not None), None)

    def banned(self) -> set[int]:
        """Ids that must not come for now."""
        return set().union(*(one.banned(self._output) for one in self._all))

    def push(self, token: int) -> None:
        """This token comes."""
        if self._forced:
            self._forced = [path[1:] for path in self._forced if path[0] == token]
            self._forced = [] if [] in self._forced else self._forced
            return
        for one in self._all:
            one.push(token, self._output)

    def begin(self) -> None:
        """Force what has to come next, if anything."""
        output, parser = self._output, self._output.parser
        if self._forced or (parser.drafted and not output.call_due):
            return
        if parser.calling:
            self._forced = next((paths for paths in (one.paths(output) for one in self._all) if paths), [])
            return
        for one in self._all:
            texts = one.texts(output)
            if texts:
                self._forced = [self._tokenizer.encode(text) for text in texts]
                one.begin(output)
                return


def _constraints(tokenizer: Tokenizer, settings: ChatSettings, written: str) -> list[Constraint]:
    markup, ends = tokenizer.markup, set(tokenizer.eos_token_ids)
    opening = tokenizer.token_id(markup.call[0])
    call = set() if opening is None else {opening}
    found: list[Constraint] = []
    if settings.thinking_budget is not None:
        found.append(ThinkingBudget(settings.thinking_budget, markup.thoughts[1]))
    if settings.tool_choice == "none":
        found.append(NoCall(call))
    if settings.forced_names:
        single = settings.tool_choice != "required"
        heads = [markup.call_head.format(name=name) for name in settings.forced_names]
        forced = ForcedCall(tokenizer, parameter_schemas(settings.tools or ()))
        found.append(RequiredCall(heads, call, ends, forced, single=single))
    if settings.schema is not None:
        more = set(tokenizer.encode("\n" + markup.call[1] + markup.call[0]))
        tools = bool(settings.tools) and settings.tool_choice != "none"
        document = Document(JsonGrammar(tokenizer, settings.schema), call, more, ends, tools=tools)
        if written:
            document.go_on(tokenizer.encode(written), written)
        found.append(document)
    return found
