// What the runner takes from manifest.json, and the generated policy's proof that it belongs to it.
#pragma once

#include <fstream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "json.h"
#include "policy.h"

namespace supple {

struct Contract {
  std::vector<std::string> joints;        // the policy's order
  std::vector<std::string> robot_joints;  // the robot's order; the same where nothing else is known
  std::vector<std::size_t> to_robot;      // index in robot_joints of each of joints
  std::vector<std::string> observations;  // the policy's order; "name@k" is k control steps old
  std::string control_mode;
  double control_dt = 0;   // [s]
  double stale_after = 0;  // [s]
  std::vector<double> damping;              // per policy joint, command per joint speed
  std::vector<double> command_low, command_high;  // empty: not bounded
};

inline std::size_t index_of(const std::string& name, const std::vector<std::string>& names) {
  for (std::size_t i = 0; i < names.size(); ++i)
    if (names[i] == name) return i;
  throw std::runtime_error("the robot has no " + name);
}

// Refuses lists that differ, naming the first place. `what` is the kind of name.
inline void require_equal(const std::vector<std::string>& wanted, const std::vector<std::string>& got,
                          const std::string& what, const std::string& where) {
  for (std::size_t i = 0; i < wanted.size() && i < got.size(); ++i)
    if (wanted[i] != got[i])
      throw std::runtime_error(what + " " + std::to_string(i) + " is '" + got[i] + "' " + where +
                               ", expected '" + wanted[i] + "'");
  if (wanted.size() != got.size())
    throw std::runtime_error(std::to_string(got.size()) + " " + what + "s " + where + ", expected " +
                             std::to_string(wanted.size()));
}

inline Contract read_contract(const std::string& bundle) {
  std::ifstream file(bundle + "/manifest.json");
  if (!file) throw std::runtime_error("no manifest.json in " + bundle);
  std::stringstream text;
  text << file.rdbuf();
  const Json manifest = JsonReader::read(text.str());
  if (manifest.at("format").text != "supple-bundle" || manifest.at("version").number != 1)
    throw std::runtime_error("manifest.json is not of format supple-bundle, version 1");
  if (manifest.at("contract_sha256").text != supple_policy_contract)
    throw std::runtime_error("this runner was built for another bundle: build it again");

  const Json& contract = manifest.at("contract");
  const Json &joints = contract.at("joints"), &safety = contract.at("safety");
  Contract found;
  found.joints = joints.at("policy_names").strings();
  if (found.joints.empty()) throw std::runtime_error("the manifest names no joints");
  const Json& robot = joints.at("robot_names");
  found.robot_joints = robot.known() ? robot.strings() : found.joints;
  for (const std::string& name : found.joints)
    found.to_robot.push_back(index_of(name, found.robot_joints));
  for (const Json& term : contract.at("observation").at("terms").list)
    found.observations.push_back(term.at("name").text);
  found.control_mode = contract.at("gains").at("control_mode").text;
  found.control_dt = contract.at("timing").at("control_dt").number;
  if (!(found.control_dt > 0)) throw std::runtime_error("the manifest knows no control_dt");
  found.stale_after = safety.at("stale_after").number;
  found.damping = safety.at("damping").at("gains").numbers();
  found.damping.resize(found.joints.size(), 0.0);
  if (safety.at("command_low").kind == Json::kList) {
    found.command_low = safety.at("command_low").numbers();
    found.command_high = safety.at("command_high").numbers();
  }

  // The names that the policy itself was generated with.
  const std::vector<std::string> actions(
      supple_policy_action_names,
      supple_policy_action_names + sizeof supple_policy_action_names / sizeof(char*));
  const std::vector<std::string> observations(
      supple_policy_observation_names,
      supple_policy_observation_names + SUPPLE_POLICY_OBSERVATIONS);
  require_equal(actions, found.joints, "joint", "in manifest.json");
  require_equal(observations, found.observations, "observation", "in manifest.json");
  return found;
}

}  // namespace supple
