"""`nas completion bash|zsh`: the words of every verb, as a function for the shell."""

from dataclasses import fields
from importlib import import_module

from nas.config.help import VERBS, groups, keys_of, keys_of_run
from nas.errors import UserError

SHELLS = ("bash", "zsh")
_FLAGS = ("--help", "--cfg", "--config-dir", "-m")
_ZSH = "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n"
# A key goes on with its value. Where bash is told so for one word, zsh is told it for all, and
# puts a space behind those that end in one.
_SPACE = {
    "bash": """\
    case "${COMPREPLY[*]}" in
        *=) type compopt > /dev/null 2>&1 && compopt -o nospace ;;
    esac""",
    "zsh": """\
    words=()
    for word in "${COMPREPLY[@]}"; do
        case "$word" in *=) words+=("$word") ;; *) words+=("$word ") ;; esac
    done
    COMPREPLY=( "${words[@]}" )""",
}
# Plain enough for zsh's bashcompinit. What is before the last `=` stands already where it ends a
# word.
_FUNCTION = """\
_nas() {{
    local line="${{COMP_LINE:0:$COMP_POINT}}" word verb words
    word="${{line##* }}"
    verb="${{line#* }}"
    verb="${{verb%% *}}"
    case "$verb" in
{cases}
    esac
    [ "${{line#* }}" = "$word" ] && words="{verbs} --help --version"
    case "$word" in
{values}
    esac
    COMPREPLY=( $(compgen -W "$words" -- "$word") )
    case "$word" in
        *=*) [ -n "$BASH_VERSION" ] && COMPREPLY=( "${{COMPREPLY[@]#${{word%=*}}=}}" ) ;;
    esac
{space}
}}
complete -o default {options}-F _nas nas
"""


def script(shell: str) -> str:
    """What the shell is to evaluate.

    Raises:
        UserError: another shell.
    """
    if shell not in SHELLS:
        raise UserError(f"nas completion {shell}: choose one of {', '.join(SHELLS)}")
    cases = [f'        {verb}) words="{" ".join(_words(verb))}" ;;' for verb in VERBS]
    chosen = {**groups(), "experiment": groups()["experiment"]}
    values = [
        f'        {group}=*) words="{" ".join(f"{group}={option}" for option in options)}" ;;'
        for group, options in chosen.items()
    ]
    made = _FUNCTION.format(
        cases="\n".join(cases),
        values="\n".join(values),
        verbs=" ".join(VERBS),
        space=_SPACE[shell],
        options="-o nospace " if shell == "zsh" else "",
    )
    return (_ZSH if shell == "zsh" else "") + made


def _words(name: str) -> list[str]:
    """What may follow a verb."""
    verb = VERBS[name]
    if name == "completion":
        return [*SHELLS, "--help"]
    if verb.options:
        made = getattr(import_module("nas.config.options"), verb.options)
        return [*(f"{one.name}=" for one in fields(made)), "--help"]
    own = {f"{key.name}=" for key in keys_of_run()}
    for group in verb.groups:
        above = "" if group == verb.short else f"{group}."
        keys = (key for option in groups()[group] for key in keys_of(group, option))
        own |= {f"{above}{key.name}=" for key in keys} | {f"{group}="}
    return [*sorted(own), "experiment=", *_FLAGS]
