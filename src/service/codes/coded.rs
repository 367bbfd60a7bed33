//! What coded sessions agree on, and coded bundles on their way in.

use std::time::Duration;

use super::{Coder, Connection, Task};
use crate::service::codings::Kind;
use crate::service::intake::Intake;
use crate::session::{Close, Hello, Message, Reason, SessionDecoder, ThinReader};

impl Connection<'_> {
    /// Settles whether the session is coded.
    pub(super) fn agree(&mut self, hello: &Hello, mut ack: Message) -> Message {
        if let Message::HelloAck { wire, .. } = &ack {
            self.wire = *wire;
            self.thin.1 = ThinReader::new(false, *wire);
        }
        if let Some((model, permit)) = self.shared.room_to_code(hello, &mut ack) {
            self.thin.1 = ThinReader::new(true, self.wire);
            self.coder = match &self.task {
                Task::Subscribe(s) => {
                    let kind = Kind { wire: self.wire, stages: s.stages, latency: hello.latency, alone: false };
                    Coder::Subscriber(Box::new(s.listener.codings().join(model, kind)), permit)
                }
                _ => Coder::Publisher(Intake::new(SessionDecoder::new(model).on(self.wire), permit, self.since)),
            };
        }
        ack
    }

    /// A coded bundle becomes a packed one, with what that cost.
    pub(super) async fn decoded(&mut self, message: Message) -> Result<(Message, Duration), Close> {
        let Coder::Publisher(intake) = &mut self.coder else { return Ok((message, Duration::ZERO)) };
        match message {
            Message::Coded { sequence, bundle, checked } => {
                match intake.decode(bundle, checked, self.shared, &self.guest.visit).await {
                    Ok((bundle, cost)) => Ok((Message::Bundle { sequence, bundle }, cost)),
                    Err(close) if close.reason == Reason::ShuttingDown => Err(self.shutting_down()),
                    Err(close) => Err(close),
                }
            }
            message => {
                if matches!(&message, Message::Bundle { bundle, .. } if bundle.is_background()) {
                    intake.silence();
                }
                Ok((message, Duration::ZERO))
            }
        }
    }
}
