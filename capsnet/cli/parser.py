"""What argparse lacks: a short help, one-line errors, bounded numbers."""

import argparse
import difflib
import math
import re

from capsnet.messages import shorten

LARGEST_INTEGER = 10**9
UNTOLD = (None, argparse.SUPPRESS)


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Adds the default to each line of help that has one."""

    def _get_help_string(self, action):
        # 0 is a default, and equals False.
        if action.default is False or action.default in UNTOLD:
            return action.help
        return f"{action.help} (default: %(default)s)"


class Screen(argparse.Action):
    """`-h`: the flags that people use, on one screen."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, nargs=0, default=argparse.SUPPRESS, **kwargs)

    def __call__(self, parser, *_):
        page = HelpFormatter(parser.prog, max_help_position=26)
        named = {action.dest: action for action in parser._actions}
        for title, (example, flags) in parser.screen.items():
            page.start_section(title)
            page.add_text(f"python {parser.prog} {example}")
            page.add_arguments([named[name] for name in flags.split()])
            page.end_section()
        page.add_text("All flags: --help_all")
        print(page.format_help(), end="")
        parser.exit()


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` with one-line errors and two pages of help.

    Args:
        screen: Dictionary, the page of `-h`: for each title an example and
            the names of the flags for it. Without it `-h` shows all flags.
    """

    def __init__(self, screen=None, **kwargs):
        more = {"formatter_class": HelpFormatter, "allow_abbrev": False}
        super().__init__(**more, **kwargs, add_help=screen is None)
        self.screen = screen
        if screen is not None:
            self.add_argument("-h", "--help", action=Screen, help="usual flags")
            self.add_argument("--help_all", action="help", help="all flags")

    def error(self, message):
        unknown = re.match(r"unrecognized arguments: (--\w[\w-]*)", message)
        hint = "-h lists the flags"
        if unknown:
            flags = list(self._option_string_actions)
            for flag in difflib.get_close_matches(unknown[1], flags, n=1):
                hint = f"did you mean {flag}? {hint}"
        self.exit(2, f"{self.prog}: {message} ({hint})\n")

    def parse(self, argv=None):
        """The defaults of all flags, and what a command line gave."""
        unset = object()
        defaults = {
            action.dest: action.default
            for action in self._actions
            if action.default is not argparse.SUPPRESS
        }
        blank = argparse.Namespace(**dict.fromkeys(defaults, unset))
        values = vars(self.parse_args(argv, blank))
        given = {name: v for name, v in values.items() if v is not unset}
        return defaults, given


def number(convert, low, high, low_included=True):
    """An argparse type: a number within bounds, with its own error."""

    def converter(text):
        try:
            value = convert(text)
        except ValueError:
            value = math.nan
        above = value >= low if low_included else value > low
        # Not a number fails every comparison.
        if not (above and value <= high and value != math.inf):
            kind = "an integer" if convert is int else "a number"
            bound = "at least" if low_included else "above"
            upper = f" and at most {high}" if high != math.inf else ""
            raise argparse.ArgumentTypeError(
                f"expected {kind} {bound} {low}{upper}, got "
                f"{shorten(repr(text), 40)}"
            )
        return value

    return converter


positive_int = number(int, 1, LARGEST_INTEGER)
positive_float = number(float, 0, math.inf, low_included=False)
non_negative_float = number(float, 0, math.inf)


def adder(group):
    """`group.add_argument` for `(*names, default, help, **more)`."""

    def add(*names_default_help, **more):
        *names, default, text = names_default_help
        if default is False:
            more["action"] = "store_true"
        group.add_argument(*names, default=default, help=text, **more)

    return add
