//! The rules of the house as tests: what a reviewer would otherwise have to see.

#[path = "tidy/locks.rs"]
mod locks;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Product lines of a file, and non-blank lines of a function.
const FILE_LINES_MAX: usize = 500;
const FUNCTION_LINES_MAX: usize = 70;

/// The files that may contain unsafe code: what talks to the kernel, to rings and to guest memory. A file that needs none any
/// more leaves the list.
const UNSAFE_FILES: &[&str] = &[
    "base/aligned.rs",
    "base/clock.rs",
    "base/heap.rs",
    "base/kept.rs",
    "base/prefetch.rs",
    "cli/blk_client/memory.rs",
    "cli/blk_client/mod.rs",
    "cli/image/sparse.rs",
    "control/broker/process.rs",
    "control/serve/files.rs",
    "disk/sys.rs",
    "engine/mod.rs",
    "engine/sim.rs",
    "engine/uring/mod.rs",
    "mover/copier.rs",
    "mover/copier/sync.rs",
    "reactor/inbox.rs",
    "reactor/pipeline/data.rs",
    "reactor/pipeline/flush.rs",
    "reactor/pipeline/gather.rs",
    "reactor/ring/mod.rs",
    "reactor/thread/mod.rs",
    "reactor/thread/signal.rs",
    "sandbox/trap.rs",
    "shared/guest_memory.rs",
    "vhost_user/sys.rs",
    "virtio/parse.rs",
    "virtio/request.rs",
];

/// A source file, read once.
struct Source {
    /// Path from the repository's root.
    path: String,
    /// As it is.
    text: String,
    /// Without tests, comments and the content of strings; the lines keep their numbers.
    code: String,
    /// Without tests.
    product: String,
}

impl Source {
    fn read(path: &Path) -> Source {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let text = fs::read_to_string(path).expect("a readable source file");
        Source::new(path.strip_prefix(root).expect("a file of the repository").display().to_string(), text)
    }

    fn new(path: String, text: String) -> Source {
        let product = if is_test_file(&path) { String::new() } else { without_tests(&text) };
        let code = without_comments_and_strings(&product);
        Source { path, text, code, product }
    }

    /// The top-level module a file of `src` belongs to.
    fn module(&self) -> Option<&str> {
        let rest = self.path.strip_prefix("src/")?;
        let name = rest.split('/').next()?.trim_end_matches(".rs");
        (!matches!(name, "lib" | "main")).then_some(name)
    }
}

#[test]
fn modules_use_only_what_stands_above_them() {
    let order = module_order();
    let mut wrong = Vec::new();
    for source in sources(&["src"]) {
        let Some(module) = source.module() else { continue };
        let Some(own) = order.iter().position(|m| m == module) else {
            wrong.push(format!("{}: module {module} is not in the table of src/ARCHITECTURE.md", source.path));
            continue;
        };
        for used in used_modules(&source.code) {
            match order.iter().position(|m| *m == used) {
                Some(at) if at > own => {
                    wrong.push(format!("{}: {module} uses {used}, which stands below it", source.path));
                }
                _ => {}
            }
        }
    }
    expect_none(&wrong);
}

#[test]
fn files_are_short() {
    let long = sources(&["src", "integration", "tests"]).into_iter().filter_map(|s| {
        let lines = s.product.trim_end().lines().count();
        (lines > FILE_LINES_MAX).then(|| format!("{}: {lines} product lines, more than {FILE_LINES_MAX}", s.path))
    });
    expect_none(&long.collect::<Vec<_>>());
}

#[test]
fn functions_are_short() {
    let mut wrong = Vec::new();
    for source in sources(&["src", "integration"]) {
        for (name, line, length) in functions(&source.code) {
            if length > FUNCTION_LINES_MAX {
                wrong
                    .push(format!("{}:{line}: {name} has {length} lines, more than {FUNCTION_LINES_MAX}", source.path));
            }
        }
    }
    expect_none(&wrong);
}

#[test]
fn nothing_is_left_for_later() {
    // Put together here, so that this file does not find itself.
    let markers = [["FIX", "ME"], ["TO", "DO"], ["XX", "X"], ["HA", "CK"], ["to", "do!"], ["unimple", "mented!"]]
        .map(|m| m.concat());
    let mut wrong = Vec::new();
    let mut files: Vec<(String, String)> =
        sources(&["src", "integration", "tests"]).into_iter().map(|s| (s.path, s.text)).collect();
    for path in ["README.md", "Cargo.toml", "integration/Cargo.toml", "src/ARCHITECTURE.md", "ci/test", "ci/install"] {
        let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).expect("a readable file");
        files.push((path.to_owned(), text));
    }
    for (path, text) in &files {
        for (number, line) in (1..).zip(text.lines()) {
            if markers.iter().any(|m| has_word(line, m)) {
                wrong.push(format!("{path}:{number}: {}", line.trim()));
            }
        }
    }
    expect_none(&wrong);
}

#[test]
fn files_say_what_they_are_for() {
    let silent = sources(&["src", "integration", "tests"])
        .into_iter()
        .filter(|s| !is_test_file(&s.path) && s.path != "src/lib.rs" && !s.text.starts_with("//!"));
    expect_none(&silent.map(|s| format!("{}: does not open with a //! comment", s.path)).collect::<Vec<_>>());
}

#[test]
fn unsafe_code_is_where_it_belongs_and_justified() {
    let mut wrong = Vec::new();
    let mut found = BTreeSet::new();
    for source in sources(&["src"]) {
        let lines: Vec<&str> = source.product.lines().collect();
        for (index, line) in source.code.lines().enumerate() {
            if !has_word(line, "unsafe") {
                continue;
            }
            found.insert(source.path.clone());
            // What an `unsafe fn` asks of its caller is said where it is declared, not where a trait's is implemented.
            let implements = line.contains("unsafe fn") && !line.contains("pub ");
            let reason = if line.contains("unsafe fn") { "# Safety" } else { "SAFETY:" };
            let above = &lines[index.saturating_sub(10)..=index];
            if !implements && !above.iter().any(|l| l.contains(reason)) {
                wrong.push(format!("{}:{}: unsafe without {reason}", source.path, index + 1));
            }
        }
    }
    let allowed: BTreeSet<String> = UNSAFE_FILES.iter().map(|f| format!("src/{f}")).collect();
    wrong.extend(found.difference(&allowed).map(|f| format!("{f}: unsafe code outside the list in this test")));
    wrong.extend(allowed.difference(&found).map(|f| format!("{f}: no unsafe code any more; take it off the list")));
    expect_none(&wrong);
}

#[test]
fn only_the_clock_reads_the_time() {
    let mut wrong = Vec::new();
    for source in sources(&["src"]) {
        for (number, line) in (1..).zip(source.code.lines()) {
            let reads =
                ["Instant::now", "SystemTime::now", "Utc::now", "clock_gettime("].iter().any(|c| line.contains(c));
            if reads && source.path != "src/base/clock.rs" {
                wrong.push(format!(
                    "{}:{number}: reads the time; use base::clock or take it as an argument",
                    source.path
                ));
            }
        }
    }
    expect_none(&wrong);
}

#[test]
fn every_limit_is_kept() {
    let all = sources(&["src"]);
    let limits = all.iter().find(|s| s.path == "src/base/limits.rs").expect("base/limits.rs");
    let names = limits.code.lines().filter_map(|l| Some(l.trim().strip_prefix("pub const ")?.split_once(':')?.0));
    let unused =
        names.filter(|name| !all.iter().any(|s| s.path != limits.path && s.code.lines().any(|l| has_word(l, name))));
    expect_none(&unused.map(|n| format!("limit {n} is used nowhere")).collect::<Vec<_>>());
}

#[test]
fn every_metric_is_counted() {
    let all = sources(&["src"]);
    let squeezed: Vec<String> = all.iter().map(|s| s.code.split_whitespace().collect()).collect();
    let mut silent = Vec::new();
    for source in all.iter().filter(|s| s.module() == Some("metrics")) {
        for line in source.code.lines() {
            let Some((name, kind)) = line.trim().trim_start_matches("pub ").split_once(": ") else { continue };
            let is_counter = kind.starts_with("AtomicU64") || kind.starts_with("[AtomicU64");
            if is_counter && line.trim().starts_with("pub ") && !squeezed.iter().any(|code| counts(code, name)) {
                silent.push(format!("{}: {name} is never incremented", source.path));
            }
        }
    }
    expect_none(&silent);
}

/// Whether squeezed code changes the counter `name`, with or without an index.
fn counts(code: &str, name: &str) -> bool {
    code.match_indices(&format!(".{name}")).any(|(at, found)| {
        let mut rest = &code[at + found.len()..];
        if rest.starts_with('[') {
            let mut depth = 0;
            let end = rest.char_indices().find(|(_, c)| {
                depth += i32::from(*c == '[') - i32::from(*c == ']');
                depth == 0
            });
            rest = end.map_or("", |(at, _)| &rest[at + 1..]);
        }
        [".fetch_add(", ".fetch_max(", ".store(", ".add_alone("].iter().any(|call| rest.starts_with(call))
    })
}

/// The modules in the order of the table in src/ARCHITECTURE.md.
fn module_order() -> Vec<String> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ARCHITECTURE.md")).expect("the text");
    let table = text.split("| module |").nth(1).expect("a table of modules");
    let rows = table.lines().skip(2).take_while(|l| l.starts_with('|'));
    let names: Vec<String> = rows.filter_map(|l| Some(l.split('`').nth(1)?.to_owned())).collect();
    assert!(names.len() > 5, "the table of modules was not understood");
    names
}

/// The top-level modules that code names by `crate::`.
fn used_modules(code: &str) -> BTreeSet<String> {
    let mut used = BTreeSet::new();
    for (at, found) in code.match_indices("crate::") {
        let rest = &code[at + found.len()..];
        if let Some(group) = rest.strip_prefix('{') {
            let (mut depth, mut word) = (0, String::new());
            for c in group.chars() {
                match c {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => drop(used.insert(std::mem::take(&mut word))),
                    ':' | ' ' | '\n' => {}
                    _ if depth == 0 => word.push(c),
                    _ => {}
                }
            }
            used.insert(word);
        } else {
            used.insert(rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect());
        }
    }
    used
}

/// Functions with their bodies: name, line, and number of non-blank lines. Relies on rustfmt: a body ends with a brace in the
/// column where its declaration begins.
fn functions(code: &str) -> Vec<(String, usize, usize)> {
    let lines: Vec<&str> = code.lines().collect();
    let mut all = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let declaration = line.trim_start();
        let Some(at) = declaration.find("fn ") else { continue };
        let qualifiers = ["pub", "const", "async", "unsafe", "extern", "\"C\""];
        let plain = |w: &str| qualifiers.contains(&w) || w.starts_with("pub(") || w == "in" || w.ends_with(')');
        if !declaration[..at].split_whitespace().all(plain) {
            continue;
        }
        let indent = &line[..line.len() - declaration.len()];
        let end = format!("{indent}}}");
        let name: String = declaration[at + 3..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        let one_line = line.trim_end().ends_with('}') || line.trim_end().ends_with(';');
        let length = if one_line {
            1
        } else {
            let body = lines[start..].iter().take_while(|l| **l != end);
            body.filter(|l| !l.trim().is_empty()).count() + 1
        };
        all.push((name, start + 1, length));
    }
    all
}

fn is_test_file(path: &str) -> bool {
    path.ends_with("/tests.rs") || (path.starts_with("src/") && path.contains("/tests/"))
}

/// Blanks out what is compiled for tests only: the item after `#[cfg(test)]`.
fn without_tests(text: &str) -> String {
    let mut kept = String::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line.trim() != "#[cfg(test)]" {
            kept.push_str(line);
            kept.push('\n');
            continue;
        }
        kept.push('\n');
        let mut indent = None;
        for item in lines.by_ref() {
            kept.push('\n');
            let column = item.len() - item.trim_start().len();
            let first = *indent.get_or_insert(column);
            let attribute = item.trim_start().starts_with("#[");
            let ends = item.ends_with(';') || item.ends_with(',') || item.ends_with('}');
            if column == first && ends && !attribute {
                break;
            }
        }
    }
    kept
}

/// Replaces comments and the content of strings by nothing; keeps line ends.
fn without_comments_and_strings(text: &str) -> String {
    let bytes: Vec<char> = text.chars().collect();
    let mut kept = String::new();
    let mut at = 0;
    let peek = |at: usize| bytes.get(at).copied().unwrap_or('\0');
    while at < bytes.len() {
        match (bytes[at], peek(at + 1)) {
            ('/', '/') => {
                while at < bytes.len() && bytes[at] != '\n' {
                    at += 1;
                }
            }
            ('"', _) => {
                kept.push('"');
                let raw = raw_hashes(&bytes, at);
                at = end_of_string(&bytes, at + 1, raw, &mut kept);
            }
            // A character, not a lifetime.
            ('\'', '\\') => {
                at += 2;
                while peek(at + 1) != '\'' && at < bytes.len() {
                    at += 1;
                }
                at += 2;
            }
            ('\'', _) if peek(at + 2) == '\'' => at += 3,
            (c, _) => {
                kept.push(c);
                at += 1;
            }
        }
    }
    kept
}

/// Number of `#` before the quote of a raw string at `at`; `None` if it is an ordinary string.
fn raw_hashes(text: &[char], at: usize) -> Option<usize> {
    let hashes = text[..at].iter().rev().take_while(|c| **c == '#').count();
    let before = at.checked_sub(hashes + 1).map(|i| text[i]);
    (before == Some('r')).then_some(hashes)
}

/// The index behind the string whose content begins at `at`.
fn end_of_string(text: &[char], mut at: usize, raw: Option<usize>, kept: &mut String) -> usize {
    while at < text.len() {
        match (text[at], raw) {
            ('\\', None) => at += 1,
            ('"', None) => return at + 1,
            ('"', Some(hashes)) if text[at + 1..].iter().take(hashes).all(|c| *c == '#') => return at + 1 + hashes,
            ('\n', _) => kept.push('\n'),
            _ => {}
        }
        // The line end that an escape stands before counts, too.
        if text.get(at) == Some(&'\n') && raw.is_none() && text[at - 1] == '\\' {
            kept.push('\n');
        }
        at += 1;
    }
    at
}

fn has_word(line: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back().is_some_and(part);
        let after = line[at + word.len()..].chars().next().is_some_and(part);
        !before && !after
    })
}

fn sources(folders: &[&str]) -> Vec<Source> {
    let mut files = Vec::new();
    for folder in folders {
        collect(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder), &mut files);
    }
    files.sort();
    assert!(files.len() > 5, "no sources were found");
    files.iter().map(|f| Source::read(f)).collect()
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a readable folder") {
        let path = entry.expect("a readable folder").path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
}

fn expect_none(wrong: &[String]) {
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

#[test]
fn the_tests_of_this_file_see_what_they_look_for() {
    let code = without_comments_and_strings("a // b\n\"c\\\"d\" 'e' 'f r#\"g\n\"h\"# '\\n' i\n");
    assert_eq!(code, "a \n\"  'f r#\"\n  i\n");
    let kept = without_tests("one\n#[cfg(test)]\nmod tests {\n    two\n}\nthree\n#[cfg(test)]\nmod more;\nfour\n");
    assert_eq!(kept.split_whitespace().collect::<Vec<_>>(), ["one", "three", "four"]);
    assert_eq!(kept.lines().count(), 9);
    let used = used_modules("use crate::base::ids; use crate::{disk, store::{page, edit}, shared::x};");
    assert_eq!(used.into_iter().collect::<Vec<_>>().len(), 4);
    let found = functions(
        "fn a() {\n    b\n\n    c\n}\npub const fn d() -> u32 { 1 }\n    fn e(\n        f: u8,\n    ) {\n    }\n",
    );
    let lengths: Vec<usize> = found.iter().map(|f| f.2).collect();
    assert_eq!(lengths, [4, 1, 4]);
    assert!(counts("self.a.waits.fetch_add(1)", "waits") && counts("x.lat[f(y[1])].fetch_add(1)", "lat"));
    assert!(
        !counts("self.waits.load(x)", "waits") && !has_word("unsafe_op", "unsafe") && has_word("unsafe {", "unsafe")
    );
}
