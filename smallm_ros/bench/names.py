"""What the arms are called, in one place and without anything heavy."""

from __future__ import annotations

OURS, ONE, TWO, STEPWISE = 'ours', 'one', 'two', 'stepwise'
OURS_WORDS = 'ours-words'
CHAT, CHAT_SENTENCE = 'chat', 'chat-sentence'
SERVER, SERVER_SENTENCE = 'server', 'server-sentence'
FLOORS = {OURS: 'floor-a', ONE: 'floor-a-one', TWO: 'floor-a-two'}
FLOOR_B = 'floor-b'
WORDS = {
    OURS: 'ours, as planned',
    ONE: 'ours, one pass forced',
    TWO: 'ours, two passes forced',
    OURS_WORDS: 'ours, the distances in words (bins) and not in metres',
    STEPWISE: 'stepwise constrained decoding, prefix kept',
    CHAT: 'create_chat_completion, JSON schema',
    CHAT_SENTENCE: 'create_chat_completion, reading a sentence',
    SERVER: 'llama-server, cache_prompt, JSON schema',
    SERVER_SENTENCE: 'llama-server, reading a sentence',
    FLOORS[OURS]: 'floor A: bare llama_decode of the same batches',
    FLOORS[ONE]: 'floor A of one pass',
    FLOORS[TWO]: 'floor A of two passes',
    FLOOR_B: 'floor B: one bare pass over what changed',
}
"""Every arm there is, in the order of the tables, in words."""
SKIPPABLE = (ONE, TWO, OURS_WORDS, STEPWISE, CHAT, SERVER)
SENTENCES = {CHAT: CHAT_SENTENCE, SERVER: SERVER_SENTENCE}
