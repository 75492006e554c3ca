/**
 * grpc-js keeps the pieces of a stream's last message until the next one begins. An agent has a stream for each kind of its pods, and
 * after what a big mesh's clusters and endpoints took, megabytes each, there may be no next one for hours. With this they go once the
 * message was put together. Where a release of grpc-js keeps them otherwise, received-messages.test.ts fails.
 */
import { StreamDecoder } from '@grpc/grpc-js/build/src/stream-decoder.js';

/** Of grpc-js's decoder: no byte of a next message was read. */
const BETWEEN_MESSAGES = 0;

interface DecoderState {
  readState: number;
  readPartialMessage: Buffer[];
}

let isDone = false;

/** For all streams of this process that are opened after it. */
export function releaseReceivedMessages(): void {
  if (isDone) return;
  isDone = true;
  const { write } = StreamDecoder.prototype;
  StreamDecoder.prototype.write = function (this: StreamDecoder, data: Buffer): Buffer[] {
    const messages = write.call(this, data);
    const state = this as unknown as DecoderState;
    if (state.readState === BETWEEN_MESSAGES) state.readPartialMessage = [];
    return messages;
  };
}
