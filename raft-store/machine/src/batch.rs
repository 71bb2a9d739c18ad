//! Several commands in one entry: applied one after another, each answered by itself, as if each had an
//! entry of its own at the same log time. A refused one changes nothing and stops none of the others.

use unibus_proto::limits::COMMANDS_PER_ENTRY_MAX;
use unibus_proto::log::proposal::Command;
use unibus_proto::log::{CommandBatch, CommandBatchReply, Reply};
use unibus_proto::v1::Reject;

use crate::apply::dispatch;
use crate::fields::{at_most, invalid};
use crate::rows::Rows;
use crate::step::{Answer, Step};

pub(crate) fn apply<R: Rows>(step: &mut Step<'_, R>, batch: CommandBatch) -> Result<Answer, Reject> {
    at_most(batch.commands.len(), COMMANDS_PER_ENTRY_MAX, "commands of an entry")?;
    let mut replies = Vec::with_capacity(batch.commands.len());
    for proposal in batch.commands {
        let answer = match proposal.command {
            Some(Command::CommandBatch(_)) => Err(invalid("a batch of commands within another one")),
            command => dispatch(step, command),
        };
        let reply = Some(answer.unwrap_or_else(Answer::Rejected));
        replies.push(Reply { at_ms: step.now(), reply });
    }
    Ok(Answer::CommandBatch(CommandBatchReply { replies }))
}
