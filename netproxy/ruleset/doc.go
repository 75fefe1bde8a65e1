// Package ruleset is skiff's nftables table: its layout, its static rules, and
// the netlink connection that changes it.
//
// The rules hold no service: services are data in maps, so a change touches a
// few map elements whatever the number of services. Chains and rules are
// computed by pure functions (Chains, PickerChain) and compared with the
// kernel's by fingerprints stored with each rule.
package ruleset
