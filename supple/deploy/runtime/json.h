// A reader of JSON, enough for manifests and descriptions: bounded depth, whole input or an error.
#pragma once

#include <cmath>
#include <cstdlib>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace supple {

struct Json {
  enum Kind { kNull, kBool, kNumber, kString, kList, kObject } kind = kNull;
  bool truth = false;
  double number = 0;
  std::string text;
  std::vector<Json> list;
  std::map<std::string, Json> object;

  const Json& at(const std::string& key) const {
    const auto found = object.find(key);
    if (kind != kObject || found == object.end())
      throw std::runtime_error("there is no " + key + " in it");
    return found->second;
  }
  bool known() const { return kind != kNull; }

  std::vector<std::string> strings() const {
    std::vector<std::string> found;
    if (kind != kNull && kind != kList) throw std::runtime_error("expected a list of texts");
    for (const Json& item : list) {
      if (item.kind != kString) throw std::runtime_error("expected a text in a list of texts");
      found.push_back(item.text);
    }
    return found;
  }
  std::vector<double> numbers() const {
    std::vector<double> found;
    if (kind != kNull && kind != kList) throw std::runtime_error("expected a list of numbers");
    for (const Json& item : list) {
      if (item.kind != kNumber) throw std::runtime_error("expected a number in a list of numbers");
      found.push_back(item.number);
    }
    return found;
  }
};

class JsonReader {
 public:
  // `what` is said where it is no JSON.
  static Json read(const std::string& text, const std::string& what) {
    JsonReader reader(text, what);
    Json value = reader.value(0);
    reader.blank();
    if (reader.at_ != text.size()) reader.fail();
    return value;
  }

 private:
  JsonReader(const std::string& text, const std::string& what) : text_(text), what_(what) {}

  [[noreturn]] void fail() const {
    throw std::runtime_error(what_ + " is no JSON at byte " + std::to_string(at_));
  }
  void blank() {
    while (at_ < text_.size() && std::string(" \t\r\n").find(text_[at_]) != std::string::npos) ++at_;
  }
  char peek() {
    blank();
    if (at_ >= text_.size()) fail();
    return text_[at_];
  }
  void expect(char wanted) {
    if (peek() != wanted) fail();
    ++at_;
  }
  bool accept(char wanted) {
    if (peek() != wanted) return false;
    ++at_;
    return true;
  }
  bool word(const char* wanted) {
    const std::string text(wanted);
    if (text_.compare(at_, text.size(), text) != 0) return false;
    at_ += text.size();
    return true;
  }

  Json value(int depth) {
    if (depth > 64) fail();
    Json found;
    const char next = peek();
    if (next == '{') {
      found.kind = Json::kObject;
      ++at_;
      if (accept('}')) return found;
      do {
        peek();
        const std::string key = string();
        expect(':');
        found.object[key] = value(depth + 1);
      } while (accept(','));
      expect('}');
    } else if (next == '[') {
      found.kind = Json::kList;
      ++at_;
      if (accept(']')) return found;
      do found.list.push_back(value(depth + 1));
      while (accept(','));
      expect(']');
    } else if (next == '"') {
      found.kind = Json::kString;
      found.text = string();
    } else if (word("true") || word("false")) {
      found.kind = Json::kBool;
      found.truth = text_[at_ - 2] == 'u';  // true ends in "ue", false in "se"
    } else if (!word("null")) {
      found.kind = Json::kNumber;
      char* end = nullptr;
      found.number = std::strtod(text_.c_str() + at_, &end);
      // strtod also takes nan, inf and hexadecimal numbers, which are no JSON.
      const std::string plain(text_.c_str() + at_, static_cast<const char*>(end));
      if (plain.empty() || plain.find_first_not_of("0123456789+-.eE") != std::string::npos) fail();
      if (!std::isfinite(found.number)) fail();
      at_ = static_cast<std::size_t>(end - text_.c_str());
    }
    return found;
  }

  std::string string() {
    expect('"');
    std::string found;
    while (at_ < text_.size() && text_[at_] != '"') {
      if (text_[at_] != '\\') {
        found += text_[at_++];
        continue;
      }
      if (++at_ >= text_.size()) fail();
      const char code = text_[at_++];
      const std::string plain = "\"\\/", control = "bfnrt", meant = "\b\f\n\r\t";
      if (plain.find(code) != std::string::npos)
        found += code;
      else if (control.find(code) != std::string::npos)
        found += meant[control.find(code)];
      else if (code == 'u')
        found += unicode();
      else
        fail();
    }
    expect('"');
    return found;
  }

  // One code point of the basic plane as UTF-8; the manifest writes all others as they are.
  std::string unicode() {
    if (at_ + 4 > text_.size()) fail();
    const long point = std::strtol(text_.substr(at_, 4).c_str(), nullptr, 16);
    at_ += 4;
    const auto byte = [](long bits) { return static_cast<char>(bits); };
    if (point < 0x80) return {byte(point)};
    if (point < 0x800) return {byte(0xC0 | (point >> 6)), byte(0x80 | (point & 63))};
    return {byte(0xE0 | (point >> 12)), byte(0x80 | ((point >> 6) & 63)), byte(0x80 | (point & 63))};
  }

  const std::string &text_, &what_;
  std::size_t at_ = 0;
};

}  // namespace supple
