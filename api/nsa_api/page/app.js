// The page: a chat, live figures, and what the layers select while an answer is made.

import { startChat } from "./chat.js";
import { startLive } from "./live.js";
import { Selection } from "./selection.js";

const selection = new Selection();
startChat({
  onStart: (id, tokens) => selection.follow(id, tokens),
});
startLive({ onLook: (id) => selection.follow(id, null) });
