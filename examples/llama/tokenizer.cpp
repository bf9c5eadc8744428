// SPDX-License-Identifier: Apache-2.0

#include "tokenizer.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <deque>
#include <functional>
#include <limits>
#include <unordered_map>
#include <utility>

#include "tokenizer_bpe.hpp"
#include "tokenizer_parts.hpp"
#include "unicode.hpp"

namespace cbq_llama {

using cbq::Errc;
using cbq::Error;
using cbq::ErrorText;
using cbq::Result;
using cbq::Status;

namespace {

constexpr std::size_t text_limit = std::size_t{1} << 30U;
constexpr Symbol no_symbol = std::numeric_limits<Symbol>::max();

struct StringHash {
  using is_transparent = void;
  std::size_t operator()(std::string_view text) const noexcept { return std::hash<std::string_view>{}(text); }
};
template <class Value>
using StringMap = std::unordered_map<std::string, Value, StringHash, std::equal_to<>>;

template <class Value>
[[nodiscard]] std::optional<Value> look_up(const StringMap<Value>& map, std::string_view key) {
  const auto found = map.find(key);
  if (found == map.end()) return std::nullopt;
  return found->second;
}

[[nodiscard]] std::string with_spaces(std::string_view token, std::string_view mark) {
  std::string out;
  for (std::size_t at = 0; at < token.size();) {
    const bool marked = !mark.empty() && token.substr(at).starts_with(mark);
    out += marked ? ' ' : token[at];
    at += marked ? mark.size() : 1;
  }
  return out;
}

[[nodiscard]] Result<std::int32_t> checked_id(std::int64_t id, std::size_t size, const char* where) {
  if (id < 0 || static_cast<std::uint64_t>(id) >= size) {
    return Error{Errc::bad_file, "a token id is outside the vocabulary", where, id, ErrorText("0 to below ") << size};
  }
  return static_cast<std::int32_t>(id);
}

}  // namespace

struct Tokenizer::State {
  // Decoding, by id.
  std::vector<std::string> bytes;
  std::vector<bool> special;
  std::vector<bool> used;
  bool strips_first_space = false;

  // Encoding.
  Alphabet alphabet = Alphabet::bytes;
  StringMap<std::int32_t> ids;        // by the text as the file spells it
  StringMap<Symbol> symbols;          // by the bytes of a word: tokens, and characters that are only part of tokens
  std::vector<std::string> partials;  // those characters: symbol - bytes.size()
  std::array<Symbol, 256> byte_symbols = {};
  std::array<Symbol, 256> byte_tokens = {};
  bool byte_fallback = false;
  bool fuses_unknown = false;
  bool whole_words_first = false;
  MergeTable merges;
  std::vector<Normalizer> normalizers;
  std::vector<PreTokenizer> pre_tokenizers;
  AddedTokenFinder raw_tokens;
  AddedTokenFinder normalized_tokens;
  std::vector<std::int32_t> prefix;
  std::vector<std::int32_t> suffix;
  std::optional<std::int32_t> bos;
  std::optional<std::int32_t> eos;
  std::optional<std::int32_t> unknown;

  // Steps of assemble(), in this order.
  [[nodiscard]] Status size_tables(const TokenizerParts& parts);
  [[nodiscard]] Status set_token(std::string_view text, std::int64_t id);
  [[nodiscard]] Status add_vocabulary(const TokenizerParts& parts);
  [[nodiscard]] Status add_merges(const TokenizerParts& parts);
  [[nodiscard]] Status add_scored_merges(const TokenizerParts& parts);
  void add_cuts(const std::string& token, Merge merge);
  [[nodiscard]] Status add_added_tokens(const TokenizerParts& parts);
  [[nodiscard]] Status add_special_ids(const TokenizerParts& parts);

  void add_joint(std::string_view left, std::string_view right);

  /// Cuts a word where no merge can reach across, so that a text without pre-tokenizer is words too.
  void cut_word(std::string_view word, std::vector<std::string_view>& out) const;
  // Encoding of one word into `out`, which starts empty; `scratch` only saves allocations.
  void encode_word(std::string_view word, std::vector<Symbol>& scratch, std::vector<Symbol>& out) const;
  void append_unknown(std::string_view character, std::vector<Symbol>& out) const;
};

// ---------------------------------------------------------------------------------------------------------------------
// Assembling

Status Tokenizer::State::size_tables(const TokenizerParts& parts) {
  std::int64_t last = -1;
  const auto check = [&last](std::string_view text, std::int64_t id) -> Status {
    if (id < 0 || id >= TokenizerParts::id_limit) {
      return Error{Errc::bad_file, "a token id is out of range", text, id,
                   ErrorText("0 to below ") << TokenizerParts::id_limit};
    }
    last = std::max(last, id);
    return {};
  };
  for (const auto& [text, id] : parts.tokens) {
    if (const Status status = check(text, id); !status) return status;
  }
  for (const AddedToken& token : parts.added_tokens) {
    if (const Status status = check(token.text, token.id); !status) return status;
  }
  if (last < 0) return Error{Errc::bad_file, "the vocabulary is empty"};
  const auto size = static_cast<std::size_t>(last) + 1;
  bytes.resize(size);
  special.resize(size);
  used.resize(size);
  return {};
}

Status Tokenizer::State::set_token(std::string_view text, std::int64_t id) {
  const auto index = static_cast<std::size_t>(id);
  const auto [entry, inserted] = ids.emplace(text, static_cast<std::int32_t>(id));
  if (!inserted) {
    return Error{Errc::bad_file, "a token occurs twice in the vocabulary", text,
                 ErrorText("ids ") << entry->second << " and " << id, "one id"};
  }
  if (used[index]) return Error{Errc::bad_file, "two tokens have the same id", text, id, "an id of its own"};
  used[index] = true;
  return {};
}

Status Tokenizer::State::add_vocabulary(const TokenizerParts& parts) {
  byte_symbols.fill(no_symbol);
  byte_tokens.fill(no_symbol);
  ids.reserve(parts.tokens.size());
  symbols.reserve(parts.tokens.size());
  for (std::size_t i = 0; i < parts.tokens.size(); ++i) {
    const auto& [text, id] = parts.tokens[i];
    if (const Status status = set_token(text, id); !status) return status;
    std::string& decoded = bytes[static_cast<std::size_t>(id)];
    const auto symbol = static_cast<Symbol>(id);
    if (alphabet == Alphabet::bytes) {
      auto spelled = alphabet_to_bytes(text);
      decoded = spelled ? *spelled : text;
      if (spelled) symbols.emplace(*std::move(spelled), symbol);
      continue;
    }
    const auto byte = byte_fallback ? byte_of_token(text) : std::nullopt;
    decoded = byte ? std::string(1, static_cast<char>(*byte)) : with_spaces(text, parts.space_mark);
    if (byte) byte_tokens[*byte] = symbol;
    if (parts.scores.empty() || parts.scores[i]) symbols.emplace(text, symbol);
  }
  for (std::size_t byte = 0; byte < 256 && alphabet == Alphabet::bytes; ++byte) {
    byte_symbols[byte] = look_up(symbols, std::string(1, static_cast<char>(byte))).value_or(no_symbol);
  }
  return {};
}

Status Tokenizer::State::add_merges(const TokenizerParts& parts) {
  merges.reserve(parts.merges.size());
  for (std::size_t rank = 0; rank < parts.merges.size(); ++rank) {
    const auto& [left, right] = parts.merges[rank];
    const auto left_id = look_up(ids, left);
    const auto right_id = look_up(ids, right);
    const auto result = look_up(ids, left + right);
    if (!left_id || !right_id || !result) {
      return Error{Errc::bad_file, "a merge names a token that is not in the vocabulary",
                   ErrorText("merges[") << rank << "]",
                   !left_id    ? left
                   : !right_id ? right
                               : left + right,
                   "a token"};
    }
    merges.insert({static_cast<Symbol>(*left_id), static_cast<Symbol>(*right_id)},
                  {static_cast<std::uint32_t>(rank), static_cast<Symbol>(*result)});
    add_joint(left, right);
  }
  return {};
}

/// Only for an alphabet of characters: with pre-tokenizers, byte-level words are short as they are.
void Tokenizer::State::add_joint(std::string_view left, std::string_view right) {
  if (alphabet != Alphabet::characters || left.empty() || right.empty()) return;
  std::size_t last = left.size() - 1;
  while (last > 0 && left.size() - last < 4 && (static_cast<unsigned char>(left[last]) & 0xC0U) == 0x80U) --last;
  if (character_length(left, last) != left.size() - last) last = left.size() - 1;
  const auto before = look_up(symbols, left.substr(last));
  const auto after = look_up(symbols, right.substr(0, character_length(right, 0)));
  if (before && after) merges.add_joint({*before, *after});
}

/// Every way to cut a token into two symbols is a merge that gives it.
void Tokenizer::State::add_cuts(const std::string& token, Merge merge) {
  const std::string_view text = token;
  for (std::size_t cut = character_length(text, 0); cut < text.size(); cut += character_length(text, cut)) {
    const auto left = look_up(symbols, text.substr(0, cut));
    const auto right = look_up(symbols, text.substr(cut));
    if (!left || !right) continue;
    merges.insert({*left, *right}, merge);
    add_joint(text.substr(0, cut), text.substr(cut));
  }
}

Status Tokenizer::State::add_scored_merges(const TokenizerParts& parts) {
  if (parts.scores.empty()) return {};
  std::vector<std::size_t> order;  // of tokens that merging may produce, best first
  for (std::size_t i = 0; i < parts.scores.size(); ++i) {
    if (!parts.scores[i]) continue;
    const std::string& text = parts.tokens[i].first;
    if (std::isnan(*parts.scores[i])) {
      return Error{Errc::not_finite, "a token's score is not a number", text, "NaN", "a number"};
    }
    if (text.size() > TokenizerParts::scored_token_limit) {
      return Error{Errc::bad_file, "a token is too long", text, text.size(), TokenizerParts::scored_token_limit};
    }
    order.push_back(i);
    for (std::size_t at = 0; at < text.size();) {
      const std::size_t length = character_length(text, at);
      const std::string_view character = std::string_view(text).substr(at, length);
      const auto symbol = static_cast<Symbol>(bytes.size() + partials.size());
      if (symbols.emplace(character, symbol).second) partials.emplace_back(character);
      at += length;
    }
  }
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return *parts.scores[a] > *parts.scores[b]; });
  std::uint32_t rank = 0;
  for (std::size_t i = 0; i < order.size(); ++i) {
    // Equal scores have equal rank: then the leftmost pair goes first.
    if (i > 0 && *parts.scores[order[i]] != *parts.scores[order[i - 1]]) ++rank;
    const auto& [text, id] = parts.tokens[order[i]];
    if (!text.empty()) add_cuts(text, {rank, static_cast<Symbol>(id)});
  }
  return {};
}

Status Tokenizer::State::add_added_tokens(const TokenizerParts& parts) {
  std::vector<AddedToken> raw;
  std::vector<AddedToken> normalized;
  for (AddedToken token : parts.added_tokens) {
    const auto index = static_cast<std::size_t>(token.id);
    const std::string& spelling = token.spelling.empty() ? token.text : token.spelling;
    if (look_up(ids, spelling) != token.id) {
      if (const Status status = set_token(spelling, token.id); !status) return status;
    }
    special[index] = special[index] || token.special;
    if (token.normalized && !normalizers.empty()) {
      auto text = normalize(token.text, normalizers);
      if (!text) return text.error();
      token.text = *std::move(text);
    }
    // What the token takes out of a text. Added tokens are not spelled in the byte alphabet.
    bytes[index] = with_spaces(token.text, parts.space_mark);
    (token.normalized ? normalized : raw).push_back(std::move(token));
  }
  raw_tokens = AddedTokenFinder(std::move(raw));
  normalized_tokens = AddedTokenFinder(std::move(normalized));
  return {};
}

Status Tokenizer::State::add_special_ids(const TokenizerParts& parts) {
  const auto set = [this](std::optional<std::int64_t> id, const char* where,
                          std::optional<std::int32_t>& out) -> Status {
    if (!id) return {};
    const auto checked = checked_id(*id, bytes.size(), where);
    if (!checked) return checked.error();
    out = *checked;
    return {};
  };
  const auto append = [this](const std::vector<std::int64_t>& from, const char* where,
                             std::vector<std::int32_t>& out) -> Status {
    for (const std::int64_t id : from) {
      const auto checked = checked_id(id, bytes.size(), where);
      if (!checked) return checked.error();
      out.push_back(*checked);
    }
    return {};
  };
  if (const Status status = set(parts.bos, "id of BOS", bos); !status) return status;
  if (const Status status = set(parts.eos, "id of EOS", eos); !status) return status;
  if (const Status status = set(parts.unknown, "id of the unknown token", unknown); !status) return status;
  if (const Status status = append(parts.prefix, "tokens before a text", prefix); !status) return status;
  if (const Status status = append(parts.suffix, "tokens after a text", suffix); !status) return status;
  if (!bos && !prefix.empty()) bos = prefix.front();
  return {};
}

Result<Tokenizer> Tokenizer::assemble(TokenizerParts parts) {
  auto state = std::make_shared<State>();
  state->alphabet = parts.alphabet;
  state->byte_fallback = parts.byte_fallback;
  state->fuses_unknown = parts.fuses_unknown;
  state->whole_words_first = parts.whole_words_first;
  state->strips_first_space = parts.strips_first_space;
  state->normalizers = std::move(parts.normalizers);
  state->pre_tokenizers = std::move(parts.pre_tokenizers);
  if (!parts.scores.empty() && parts.scores.size() != parts.tokens.size()) {
    return Error{Errc::bad_file, "the number of scores is not the number of tokens", "scores", parts.scores.size(),
                 parts.tokens.size()};
  }
  if (const Status status = state->size_tables(parts); !status) return status.error();
  if (const Status status = state->add_vocabulary(parts); !status) return status.error();
  if (const Status status = state->add_merges(parts); !status) return status.error();
  if (const Status status = state->add_scored_merges(parts); !status) return status.error();
  if (const Status status = state->add_added_tokens(parts); !status) return status.error();
  if (const Status status = state->add_special_ids(parts); !status) return status.error();
  return Tokenizer(std::move(state));
}

// ---------------------------------------------------------------------------------------------------------------------
// Encoding

void Tokenizer::State::append_unknown(std::string_view character, std::vector<Symbol>& out) const {
  const auto token_of = [this](char byte) { return byte_tokens[static_cast<unsigned char>(byte)]; };
  const auto has_token = [&](char byte) { return token_of(byte) != no_symbol; };
  if (byte_fallback && std::all_of(character.begin(), character.end(), has_token)) {
    for (const char byte : character) out.push_back(token_of(byte));
    return;
  }
  if (!unknown) return;
  const auto symbol = static_cast<Symbol>(*unknown);
  if (!fuses_unknown || out.empty() || out.back() != symbol) out.push_back(symbol);
}

void Tokenizer::State::cut_word(std::string_view word, std::vector<std::string_view>& out) const {
  if (alphabet != Alphabet::characters || whole_words_first) {
    out.push_back(word);
    return;
  }
  std::size_t begin = 0;
  Symbol before = no_symbol;
  for (std::size_t at = 0; at < word.size();) {
    const std::size_t length = character_length(word, at);
    const Symbol symbol = look_up(symbols, word.substr(at, length)).value_or(no_symbol);
    // Characters that are no tokens stay with their neighbours: what becomes of them may depend on those.
    if (before < bytes.size() && symbol < bytes.size() && !merges.is_joint({before, symbol})) {
      out.push_back(word.substr(begin, at - begin));
      begin = at;
    }
    before = symbol;
    at += length;
  }
  if (begin < word.size()) out.push_back(word.substr(begin));
}

void Tokenizer::State::encode_word(std::string_view word, std::vector<Symbol>& scratch,
                                   std::vector<Symbol>& out) const {
  if (whole_words_first) {
    if (const auto symbol = look_up(symbols, word)) {
      out.push_back(*symbol);
      return;
    }
  }
  const bool by_byte = alphabet == Alphabet::bytes;
  scratch.clear();
  for (std::size_t at = 0; at < word.size();) {
    const std::string_view character = word.substr(at, by_byte ? 1 : character_length(word, at));
    const Symbol symbol =
        by_byte ? byte_symbols[static_cast<unsigned char>(word[at])] : look_up(symbols, character).value_or(no_symbol);
    if (symbol != no_symbol) {
      scratch.push_back(symbol);
    } else {
      append_unknown(character, scratch);
    }
    at += character.size();
  }
  merges.apply(scratch);
  for (const Symbol symbol : scratch) {
    if (symbol < bytes.size()) {
      out.push_back(symbol);
    } else {
      append_unknown(partials[symbol - bytes.size()], out);  // only part of tokens, and no merge took it
    }
  }
}

namespace {

/// Calls `on_text(part)` and `on_token(id)` for a text cut at its added tokens.
template <class OnText, class OnToken>
[[nodiscard]] Status visit_parts(std::string_view text, const std::vector<AddedTokenFinder::Match>& matches,
                                 OnText on_text, OnToken on_token) {
  std::size_t from = 0;
  for (const auto& match : matches) {
    if (match.span.begin > from) {
      if (const Status status = on_text(text.substr(from, match.span.begin - from)); !status) return status;
    }
    on_token(match.id);
    from = match.span.end;
  }
  if (from < text.size()) return on_text(text.substr(from));
  return {};
}

}  // namespace

/// One call of encode(). Each word is merged once, however often it occurs.
class Tokenizer::Encoding {
 public:
  Encoding(const State& state, AddedTokenFinder::Wanted wanted) : state_(state), wanted_(wanted) {}

  [[nodiscard]] Status text(std::string_view text) {
    return visit_parts(
        text, state_.raw_tokens.find(text, wanted_), [this](std::string_view part) { return raw_part(part); },
        [this](std::int32_t id) { token(id); });
  }
  void token(std::int32_t id) {
    position_ = TextPosition::later;
    ids.push_back(id);
  }

  std::vector<std::int32_t> ids;

 private:
  [[nodiscard]] Status raw_part(std::string_view part) {
    if (!state_.normalizers.empty()) {
      auto normalized = normalize(part, state_.normalizers);
      if (!normalized) return normalized.error();
      part = storage_.emplace_back(*std::move(normalized));
    }
    return visit_parts(
        part, state_.normalized_tokens.find(part, wanted_),
        [this](std::string_view rest) { return normalized_part(rest); }, [this](std::int32_t id) { token(id); });
  }

  [[nodiscard]] Status normalized_part(std::string_view part) {
    const auto words = split_words(part, position_, state_.pre_tokenizers, storage_);
    if (!words) return words.error();
    position_ = TextPosition::later;
    for (const std::string_view word : *words) {
      pieces_.clear();
      state_.cut_word(word, pieces_);
      for (const std::string_view piece : pieces_) add_word(piece);
    }
    return {};
  }

  void add_word(std::string_view word) {
    const auto [entry, fresh] = known_.try_emplace(word);
    if (fresh) {
      encoded_.clear();
      state_.encode_word(word, scratch_, encoded_);
      entry->second.begin = known_ids_.size();
      for (const Symbol symbol : encoded_) known_ids_.push_back(static_cast<std::int32_t>(symbol));
      entry->second.end = known_ids_.size();
    }
    for (std::size_t i = entry->second.begin; i < entry->second.end; ++i) ids.push_back(known_ids_[i]);
  }

  const State& state_;
  AddedTokenFinder::Wanted wanted_;
  TextPosition position_ = TextPosition::start;
  std::deque<std::string> storage_;                   // what words point into, beside the text
  std::unordered_map<std::string_view, Span> known_;  // into known_ids_
  std::vector<std::int32_t> known_ids_;
  std::vector<std::string_view> pieces_;
  std::vector<Symbol> scratch_;
  std::vector<Symbol> encoded_;
};

Result<std::vector<std::int32_t>> Tokenizer::encode(std::string_view text, EncodeOptions options) const {
  if (text.size() > text_limit) {
    return Error{Errc::bad_argument, "the text is too long to encode in one call", {}, text.size(), text_limit};
  }
  const bool framed = options.frame == EncodeOptions::Frame::added;
  const auto wanted = options.special == EncodeOptions::Special::as_tokens ? AddedTokenFinder::Wanted::all
                                                                           : AddedTokenFinder::Wanted::not_special;
  return reporting_bad_alloc([&]() -> Result<std::vector<std::int32_t>> {
    Encoding encoding(*state_, wanted);
    if (framed) encoding.ids = state_->prefix;
    if (const Status status = encoding.text(text); !status) return status.error();
    if (framed) encoding.ids.insert(encoding.ids.end(), state_->suffix.begin(), state_->suffix.end());
    return std::move(encoding.ids);
  });
}

// ---------------------------------------------------------------------------------------------------------------------
// Decoding

Result<std::string_view> Tokenizer::bytes(std::int32_t id) const {
  const auto& bytes = state_->bytes;
  if (id < 0 || static_cast<std::size_t>(id) >= bytes.size()) {
    return Error{
        Errc::bad_argument, "a token id is outside the vocabulary", {}, id, ErrorText("0 to below ") << bytes.size()};
  }
  return std::string_view(bytes[static_cast<std::size_t>(id)]);
}

Result<std::string> Tokenizer::decode(std::span<const std::int32_t> ids, ShowSpecial show) const {
  return reporting_bad_alloc([&]() -> Result<std::string> {
    std::string text;
    for (const std::int32_t id : ids) {
      const auto piece = bytes(id);
      if (!piece) return piece.error();
      if (show == ShowSpecial::yes || !is_special(id)) text += *piece;
    }
    if (strips_first_space() && text.starts_with(' ')) text.erase(0, 1);
    return text;
  });
}

Result<std::string> StreamDecoder::push(std::int32_t id) {
  const auto bytes = tokenizer_.bytes(id);
  if (!bytes) return bytes.error();
  std::string_view piece = *bytes;
  if (piece.empty() || (show_ == ShowSpecial::no && tokenizer_.is_special(id))) return std::string();
  if (strips_space_ && piece.front() == ' ') piece.remove_prefix(1);
  strips_space_ = false;
  return reporting_bad_alloc([&]() -> Result<std::string> {
    waiting_ += piece;
    const std::size_t ready = without_unfinished_character(waiting_);
    std::string text = waiting_.substr(0, ready);
    waiting_.erase(0, ready);
    return text;
  });
}

std::string StreamDecoder::finish() {
  return std::exchange(waiting_, {});
}

std::size_t Tokenizer::vocabulary_size() const {
  return state_->bytes.size();
}
std::optional<std::int32_t> Tokenizer::bos() const {
  return state_->bos;
}
std::optional<std::int32_t> Tokenizer::eos() const {
  return state_->eos;
}
std::optional<std::int32_t> Tokenizer::unknown() const {
  return state_->unknown;
}
std::optional<std::int32_t> Tokenizer::find(std::string_view token) const {
  return look_up(state_->ids, token);
}
bool Tokenizer::is_special(std::int32_t id) const {
  return id >= 0 && static_cast<std::size_t>(id) < state_->special.size() &&
         state_->special[static_cast<std::size_t>(id)];
}
std::span<const std::int32_t> Tokenizer::prefix() const {
  return state_->prefix;
}
bool Tokenizer::strips_first_space() const {
  return state_->strips_first_space;
}

// ---------------------------------------------------------------------------------------------------------------------
// What both readers need

std::optional<unsigned char> byte_of_token(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token.back() != '>') return std::nullopt;
  unsigned value = 0;
  for (const char digit : token.substr(3, 2)) {
    value *= 16;
    if (digit >= '0' && digit <= '9') {
      value += static_cast<unsigned>(digit - '0');
    } else if (digit >= 'A' && digit <= 'F') {
      value += static_cast<unsigned>(digit - 'A') + 10;
    } else if (digit >= 'a' && digit <= 'f') {
      value += static_cast<unsigned>(digit - 'a') + 10;
    } else {
      return std::nullopt;
    }
  }
  return static_cast<unsigned char>(value);
}

Result<std::pair<std::string, std::string>> parse_merge(std::string_view merge, std::size_t rank) {
  const std::size_t space = merge.find(' ');
  const bool sound = space != std::string_view::npos && space > 0 && space + 1 < merge.size() &&
                     merge.find(' ', space + 1) == std::string_view::npos;
  if (!sound) {
    return Error{Errc::bad_file, "a merge is not two tokens with one space between them",
                 ErrorText("merges[") << rank << "]", merge};
  }
  return std::pair(std::string(merge.substr(0, space)), std::string(merge.substr(space + 1)));
}

}  // namespace cbq_llama
