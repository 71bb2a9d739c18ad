//! The manual is a tested product: every command and every option is walked.

use super::*;

fn walk(command: &ClapCommand, path: &str, visit: &mut impl FnMut(&ClapCommand, &str)) {
    visit(command, path);
    for child in command.get_subcommands().filter(|child| child.get_name() != "help") {
        walk(child, &format!("{path} {}", child.get_name()), visit);
    }
}

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::parse_from_args(line.split_whitespace())
}

#[test]
fn tree_is_consistent() {
    command().debug_assert();
}

#[test]
fn every_page_has_examples_that_parse_and_a_next_step() {
    walk(&command(), "unibusctl", &mut |page, path| {
        assert!(page.get_about().is_some_and(|about| !about.to_string().is_empty()), "{path}: no description");
        let examples = page.get_before_help().map(ToString::to_string).unwrap_or_default();
        assert!(examples.starts_with("Examples:\n"), "{path}: no examples");
        for line in examples.lines().filter(|line| line.trim_start().starts_with("unibusctl")) {
            let words = line.split(['<', '>', '|', '#']).next().unwrap_or(line);
            let words = words.replace("'ops.", "'ops.>'").replace('\'', "");
            assert!(parse(&words).is_ok(), "{path}: example does not parse: {line}");
        }
        let next = page.get_after_help().map(ToString::to_string).unwrap_or_default();
        assert!(next.starts_with("Next: "), "{path}: no next step");
    });
}

#[test]
fn every_option_has_help_and_none_takes_a_secret() {
    walk(&command(), "unibusctl", &mut |page, path| {
        for arg in page.get_arguments() {
            assert!(
                arg.get_help().is_some_and(|help| !help.to_string().is_empty()),
                "{path}: {} has no help",
                arg.get_id()
            );
            let name = arg.get_long().unwrap_or_default();
            for word in ["password", "passphrase", "secret", "token", "private"] {
                assert!(!name.contains(word), "{path}: --{name} would put a secret into argv");
            }
            if name.contains("key") || name.contains("identity") {
                let takes_file = arg.get_value_names().is_some_and(|names| names[0] == "FILE");
                assert!(takes_file, "{path}: --{name} must take a file");
            }
        }
    });
}

/// clap gives one value to all arguments of an id: `group transfer s1 n3` once spoke to n3 alone, as `--node n3` does.
#[test]
fn no_argument_is_taken_for_a_global_option() {
    let globals: Vec<_> =
        command().get_arguments().filter(|arg| arg.is_global_set()).map(|arg| arg.get_id().clone()).collect();
    assert!(globals.iter().any(|id| id == "node"), "{globals:?}");
    walk(&command(), "unibusctl", &mut |page, path| {
        for arg in page.get_arguments().filter(|arg| !arg.is_global_set()) {
            let local_list = path == "unibusctl profile add";
            assert!(local_list || !globals.contains(arg.get_id()), "{path}: {} is also a global option", arg.get_id());
        }
    });
}

#[test]
fn first_page_lists_every_command_with_its_own_words() {
    for child in command().get_subcommands().filter(|child| child.get_name() != "help") {
        let about = child.get_about().map(ToString::to_string).unwrap_or_default();
        let line = format!("  {:<13}{about}\n", child.get_name());
        assert!(FIRST_PAGE.contains(&line), "the first page lacks: {line}");
    }
}

#[test]
fn examples_come_before_usage_and_options() {
    walk(&command(), "unibusctl", &mut |_, path| {
        let mut whole = command();
        whole.build();
        let page = path.split(' ').skip(1).fold(&whole, |page, name| page.find_subcommand(name).unwrap_or(page));
        let text = page.clone().render_long_help().to_string();
        let at = |word: &str| text.find(word).unwrap_or_else(|| panic!("{path}: no {word:?} in:\n{text}"));
        assert!(at("Examples:") < at("Usage:"), "{path}");
    });
    let full = command().render_long_help().to_string();
    assert!(full.contains("outcome unknown: retry only with the same message id"), "{full}");
}

#[test]
fn a_wrong_value_of_any_length_is_an_error_of_a_few_lines() {
    let text = parse(&format!("unibusctl pub ops.dpkg hi -H a:{}", "b".repeat(9_000))).unwrap_err().to_string();
    assert!(text.len() < 400 && text.contains("9000 bytes, expected at most 4096"), "{text}");
}

#[test]
fn commands_of_the_manual_parse() {
    for line in [
        "unibusctl room create ops.dpkg --plaintext",
        "unibusctl pub ops.dpkg --lines --rate 1500 -H a:b --producer p",
        "unibusctl pub ops.dpkg -",
        "unibusctl pub ops.dpkg -1",
        "unibusctl sub ops.dpkg --from earliest --until-end --raw",
        "unibusctl --node n2 sub ops.> --json",
        "unibusctl sub ops.dpkg --since 2h --count 5",
        "unibusctl status --watch",
        "unibusctl group list --json",
        "unibusctl group transfer meta n2",
        "unibusctl verify",
        "unibusctl config effective --node n1",
        "unibusctl user add bob --key FILE",
        "unibusctl user get bob",
        "unibusctl room member add ops.dpkg bob --role reader",
        "unibusctl profile add bob --identity FILE --ca FILE --node ADDR --node ADDR2",
        "unibusctl context list",
        "unibusctl --profile bob sub ops.dpkg",
        "unibusctl bench publish --size 1024 --publishers 8 --in-flight 128 --for 10s --json",
        "unibusctl bench latency --rate 1500/s --publishers 2 --rooms 2",
        "unibusctl bench e2e --rate 5000 --size 1024 --for 10s --compare old.json --tolerance 20",
        "unibusctl bench replay --room bench.1 --subscribers 2",
        "unibusctl bench fanout --subscribers 100 --size 128 --ahead 4096",
        "unibusctl check --loop --every 200ms --for 45s",
        "unibusctl completions zsh",
    ] {
        assert!(parse(line).is_ok(), "{line}: {}", parse(line).unwrap_err());
    }
}

#[test]
fn nodes_of_a_new_profile_are_not_the_pinned_node() {
    let cli = parse("unibusctl profile add bob --identity I --ca C --node a:1 --node b:2").unwrap();
    let Command::Profile(ProfileCommand::Add(add)) = cli.command else { panic!("another command") };
    assert_eq!(add.node, ["a:1", "b:2"]);
    let cli = parse("unibusctl status --node n1").unwrap();
    assert_eq!(cli.global.node, ["n1"]);
}

#[test]
fn wrong_usage_is_refused_with_a_suggestion() {
    for (line, words) in [
        ("unibusctl rom list", "'room'"),
        ("unibusctl pub ops.dpkg --line", "'--lines'"),
        ("unibusctl pub ops.dpkg", "<BODY>"),
        ("unibusctl pub ops.dpkg body --lines", "cannot be used with"),
        ("unibusctl pub ops..dpkg x", "a token is empty"),
        ("unibusctl sub a.>.b", "'>' stands only at the end"),
        ("unibusctl sub a --until-end", "--from"),
        ("unibusctl sub a --from earliest --since 2h", "cannot be used with"),
        ("unibusctl sub a --since 2x", "such as 200ms"),
        ("unibusctl user add Bob --key f", "a-z 0-9"),
        ("unibusctl check --for 5s", "--loop"),
        ("unibusctl group transfer x1 n1", "expected meta, s1"),
        ("unibusctl bench publish --size 2MiB", "expected at most 1048576"),
        ("unibusctl bench publish --in-flight 2000", "1024"),
        ("unibusctl bench publish --count 5 --rate 5", "cannot be used with"),
        ("unibusctl bench e2e --size 4", "at least 8"),
        ("unibusctl bench replay --room a --count 5", "cannot be used with"),
        ("unibusctl room member add a bob --role owner", "reader"),
    ] {
        let error = parse(line).expect_err(line);
        assert_eq!(error.exit_code(), 2, "{line}");
        assert!(error.to_string().contains(words), "{line}: {error}");
    }
}

#[test]
fn what_is_not_stored_cannot_be_retained() {
    assert!(parse("unibusctl room create live.cpu --plaintext --ephemeral").is_ok());
    for retain in ["--retain-age 7d", "--retain-bytes 1GiB", "--retain-messages 10"] {
        let both = parse(&format!("unibusctl room create live.cpu --plaintext --ephemeral {retain}"));
        assert!(both.is_err(), "{retain} was taken");
    }
}
