// SPDX-License-Identifier: GPL-2.0-only

//! Programs that are run before and after a move.

use super::{ConfigError, Place};
use serde::Deserialize;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;
use toml::Spanned;

/// Seconds that one may take: less than a stop of the daemon waits for.
const SECONDS: RangeInclusive<u64> = 1..=120;
/// The same if nothing is said.
const DEFAULT: u64 = 30;

/// Programs for a guest, or for all that have none of their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookConfig {
    /// Name of the guest.
    pub guest: Option<String>,
    /// Before it moves.
    pub before: Option<PathBuf>,
    /// After it has moved, or has not.
    pub after: Option<PathBuf>,
    /// How long each may take.
    pub timeout: Duration,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawHook {
    guest: Option<Spanned<String>>,
    before_move: Option<Spanned<PathBuf>>,
    after_move: Option<Spanned<PathBuf>>,
    timeout_seconds: Option<Spanned<u64>>,
}

/// Check all of them.
pub(super) fn check(raw: Vec<RawHook>, place: &Place<'_>) -> Result<Vec<HookConfig>, ConfigError> {
    let mut hooks: Vec<HookConfig> = Vec::new();
    let program = |program: Option<Spanned<PathBuf>>| match program {
        Some(p) if !p.get_ref().is_absolute() => {
            Err(place.error(Some(p.span()), "must be an absolute path"))
        }
        program => Ok(program.map(Spanned::into_inner)),
    };
    for hook in raw {
        let span = hook.guest.as_ref().map(Spanned::span);
        let guest = hook.guest.map(Spanned::into_inner);
        if hooks.iter().any(|h| h.guest == guest) {
            let whose = guest.map_or("for all guests".into(), |g| format!("for guest {g}"));
            return Err(place.error(span, format!("there is a [[hook]] {whose} already")));
        }
        let timeout = match hook.timeout_seconds {
            None => DEFAULT,
            Some(s) if !SECONDS.contains(s.get_ref()) => {
                return Err(place.error(Some(s.span()), "must be between 1 and 120"));
            }
            Some(s) => s.into_inner(),
        };
        hooks.push(HookConfig {
            guest,
            before: program(hook.before_move)?,
            after: program(hook.after_move)?,
            timeout: Duration::from_secs(timeout),
        });
    }
    Ok(hooks)
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::*;
    use std::path::Path;

    fn parse(text: &str) -> Result<Vec<HookConfig>, String> {
        let config = Config::parse(Path::new("vmbeamd.toml"), text);
        config.map(|c| c.hooks).map_err(|e| e.to_string())
    }

    #[test]
    fn hooks_are_checked() {
        let hooks = parse("[[hook]]\nbefore_move = \"/a\"\n[[hook]]\nguest = \"web\"\n").unwrap();
        assert_eq!(hooks[0].before.as_deref(), Some(Path::new("/a")));
        assert_eq!(hooks[0].timeout, Duration::from_secs(30));
        assert_eq!(hooks[1].guest.as_deref(), Some("web"));
        for (text, why) in [
            (
                "before_move = \"a\"",
                "vmbeamd.toml:2: before_move: must be an absolute path",
            ),
            (
                "timeout_seconds = 0",
                "vmbeamd.toml:2: timeout_seconds: must be between 1 and 120",
            ),
            (
                "timeout_seconds = 121",
                "vmbeamd.toml:2: timeout_seconds: must be between 1 and 120",
            ),
            (
                "guest = \"x\"\n[[hook]]\nguest = \"x\"",
                "vmbeamd.toml:4: guest: there is a [[hook]] for guest x already",
            ),
            ("[[hook]]", "there is a [[hook]] for all guests already"),
        ] {
            let e = parse(&format!("[[hook]]\n{text}\n")).unwrap_err();
            assert!(e.contains(why), "{e}");
        }
    }
}
