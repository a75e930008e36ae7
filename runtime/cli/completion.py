"""A script that completes commands, options and their choices in a shell, made of the parser."""

from __future__ import annotations

import argparse
from typing import Dict, List

_ZSH = """\
autoload -U +X compinit && compinit
autoload -U +X bashcompinit && bashcompinit
"""
_SCRIPT = """\
_blip_edge() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD-1]}} words=
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "{commands}" -- "$current"))
        return
    fi
    case "${{COMP_WORDS[1]}} $previous" in
{choices}
    esac
    if [ -z "$words" ]; then
        case "$current" in
            -*) case "${{COMP_WORDS[1]}}" in
{options}
                esac ;;
            *) COMPREPLY=($(compgen -f -- "$current"))
               return ;;
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o filenames -F _blip_edge blip-edge"""


def completion(parser: argparse.ArgumentParser, shell: str) -> str:
    """The script for ``bash`` or ``zsh``."""
    commands = _commands(parser)
    options, choices = [], []
    for name, command in commands.items():
        words = [flag for action in command._actions for flag in action.option_strings]
        options.append(f'                {name}) words="{" ".join(words)}" ;;')
        for action in command._actions:
            # What has no flag follows the command's name.
            flags = action.option_strings or [name]
            if action.choices:
                keys = "|".join(f'"{name} {flag}"' for flag in flags)
                among = " ".join(map(str, action.choices))
                choices.append(f'        {keys}) words="{among}" ;;')
    script = _SCRIPT.format(
        commands=" ".join(commands), options="\n".join(options), choices="\n".join(choices)
    )
    return (_ZSH if shell == "zsh" else "") + script


def _commands(parser: argparse.ArgumentParser) -> Dict[str, argparse.ArgumentParser]:
    found: List[Dict[str, argparse.ArgumentParser]] = [
        dict(action.choices)
        for action in parser._actions
        if isinstance(action, argparse._SubParsersAction)
    ]
    return found[0]
