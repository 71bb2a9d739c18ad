//! Makes a room, says hello in it, and reads it back.
//!
//! With a development cluster running (`unibus-node dev`):
//! `cargo run -p unibus-client --example hello_room -- ~/.config/unibus/profiles/dev.json`

use std::path::Path;

use unibus_client::proto::files::{Identity, Profile};
use unibus_client::proto::subject::Subject;
use unibus_client::proto::v1::RoomPolicy;
use unibus_client::{Client, ClientConfig, ErrorCode, Item, Start, SubscribeOptions, TokioPlatform};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("usage: hello_room PROFILE.json")?;
    let profile = Profile::load(Path::new(&path))?;
    let platform = TokioPlatform::from_ca_file(&profile.ca)?;
    let client =
        Client::connect(platform, ClientConfig::new(profile.nodes.clone()), Identity::load(&profile.identity)?).await?;

    let subject: Subject = "hello.room".parse()?;
    match client.create_room(&subject, RoomPolicy { persist: true, ..RoomPolicy::default() }).await {
        Err(error) if error.code == ErrorCode::AlreadyExists => println!("the room {subject} is there already"),
        made => println!("made the room {}", made?.room.subject),
    }

    let publisher = client.publisher(&subject).open().await?;
    let ack = publisher.send("hello").await?;
    println!("stored at sequence {}, fsynced on a majority of {}", ack.sequence, ack.voters);

    let options = SubscribeOptions { until_end: true, ..SubscribeOptions::default() };
    let mut subscription = client.subscribe(&subject.as_str().parse()?, Start::Earliest, options).await?;
    while let Some(item) = subscription.next().await {
        if let Item::Message(message) = item? {
            println!("{:>6} {}: {}", message.sequence, message.user, String::from_utf8_lossy(&message.body));
        }
    }
    Ok(())
}
