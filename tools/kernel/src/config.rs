// SPDX-License-Identifier: GPL-2.0

//! The kernel's configuration: `tinyconfig` and the fragments in `tools/kernel/configs`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{bail, Context, Result};
use clap::ValueEnum;

/// Which kernel is built.
#[derive(Clone, Copy, Default, ValueEnum)]
pub enum Flavour {
    /// As users run it.
    #[default]
    Release,
    /// With every cheap check, fault injection and KUnit.
    Test,
    /// The same with KASAN and page poisoning.
    Kasan,
}

impl Flavour {
    /// The name as given on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Test => "test",
            Self::Kasan => "kasan",
        }
    }

    /// Whether this kernel is for finding bugs: then clippy compiles the Rust code too.
    pub fn is_checked(self) -> bool {
        !matches!(self, Self::Release)
    }

    /// The fragments, later ones overriding earlier ones; with or without what only a kernel with
    /// this project in it knows.
    pub fn fragments(self, checkout: &Path, project: bool) -> Vec<PathBuf> {
        let of_any: &[&str] = match self {
            Self::Release => &["base", "release"],
            Self::Test => &["base", "test"],
            Self::Kasan => &["base", "test", "kasan"],
        };
        let of_project: &[&str] = match (project, self.is_checked()) {
            (false, _) => &[],
            (true, false) => &["project"],
            (true, true) => &["project", "project-test"],
        };
        let configs = checkout.join("tools/kernel/configs");
        of_any
            .iter()
            .chain(of_project)
            .map(|name| configs.join(format!("{name}.config")))
            .collect()
    }
}

/// Symbols and their values; an unset symbol has the value `n`.
type Symbols = BTreeMap<String, String>;

/// Reads the lines `CONFIG_X=value` and `# CONFIG_X is not set`.
fn parse(text: &str) -> Symbols {
    let unset = |line: &str| {
        line.strip_prefix("# ")?
            .strip_suffix(" is not set")
            .map(str::to_owned)
    };
    text.lines()
        .filter_map(|line| match unset(line) {
            Some(symbol) => Some((symbol, "n".to_owned())),
            None if line.starts_with('#') => None,
            None => line
                .split_once('=')
                .map(|(symbol, value)| (symbol.to_owned(), value.to_owned())),
        })
        .filter(|(symbol, _)| symbol.starts_with("CONFIG_"))
        .collect()
}

/// Checks that the kernel's configuration is what the fragments ask for.
///
/// # Errors
///
/// Names every symbol that kconfig dropped or changed, which means that something it depends on is
/// missing.
pub fn verify(config: &Path, fragments: &[PathBuf]) -> Result<()> {
    let mut wanted = Symbols::new();
    for fragment in fragments {
        let text = fs::read_to_string(fragment).with_context(|| fragment.display().to_string())?;
        wanted.extend(parse(&text));
    }
    let missing = differing(&wanted, &parse(&fs::read_to_string(config)?));
    if !missing.is_empty() {
        bail!(
            "kconfig did not accept these; is something they depend on missing?\n{}",
            missing.join("\n")
        );
    }
    Ok(())
}

fn differing(wanted: &Symbols, got: &Symbols) -> Vec<String> {
    let value = |symbol: &String| got.get(symbol).map_or("n", String::as_str);
    wanted
        .iter()
        .filter(|(symbol, wanted)| value(symbol) != wanted.as_str())
        .map(|(symbol, wanted)| format!("{symbol}: wanted {wanted}, got {}", value(symbol)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_symbol_is_named() {
        let wanted =
            parse("CONFIG_A=y\nCONFIG_B=m\n# CONFIG_C is not set\n# a comment = no symbol\n");
        let got = parse("CONFIG_A=y\nCONFIG_B=y\n");
        assert_eq!(differing(&wanted, &got), ["CONFIG_B: wanted m, got y"]);
    }

    #[test]
    fn an_unset_symbol_must_be_unset() {
        let got = parse("CONFIG_C=y\n");
        assert_eq!(
            differing(&parse("# CONFIG_C is not set\n"), &got),
            ["CONFIG_C: wanted n, got y"]
        );
    }
}
