// The page: a chat, live figures, and what the layers select while an answer is made.

import { startChat } from "./chat.js";
import { startLive } from "./live.js";
import { Selection } from "./selection.js";

const selection = new Selection();
startChat({
  onSend: () => selection.wait(),
  onStart: (id, tokens) => selection.follow(id, tokens),
  onNothing: () => selection.stopWaiting(),
});
startLive({ onLook: (id) => selection.follow(id, null) });
