//! What each command does.

mod bench;
mod check;
mod check_loop;
mod config;
mod group;
mod identity;
mod node;
mod profile;
mod publish;
mod room;
mod status;
mod subscribe;
mod user;
mod verify;

use clap_complete::generate;
use unibus_proto::v1::RoomPolicy;

use crate::args::{self, Cli, Command, CompletionsArgs};
use crate::exit::{Exit, Result};
use crate::output::Output;

/// Runs the command; the number is the exit code.
pub async fn run(cli: Cli, out: Output) -> Result<u8> {
    let global = &cli.global;
    match &cli.command {
        Command::Publish(args) => publish::run(args, global, out).await?,
        Command::Subscribe(args) => subscribe::run(args, global, out).await?,
        Command::Room(command) => room::run(command, global, out).await?,
        Command::User(command) => user::run(command, global, out).await?,
        Command::Identity(command) => identity::run(command, out)?,
        Command::Whoami => user::whoami(global, out).await?,
        Command::Node(command) => node::run(command, global, out).await?,
        Command::Status(args) => status::run(args, global, out).await?,
        Command::Check(args) => return Ok(check::run(args, global, out).await),
        Command::Verify(_) => return verify::run(global, out).await,
        Command::Group(command) => group::run(command, global, out).await?,
        Command::Config(command) => config::run(command, global, out).await?,
        Command::Bench(command) => bench::run(command, global, out).await?,
        Command::Profile(command) => profile::run(command, global, out)?,
        Command::Completions(args) => completions(args, out)?,
    }
    Ok(Exit::Done.number())
}

/// The policy of the rooms that `check` and `bench` make.
fn stored_plaintext() -> RoomPolicy {
    RoomPolicy { persist: true, ..RoomPolicy::default() }
}

fn completions(args: &CompletionsArgs, out: Output) -> Result<()> {
    let mut script = Vec::new();
    generate(args.shell, &mut args::command(), "unibusctl", &mut script);
    out.line(String::from_utf8_lossy(&script).trim_end())
}
