package image

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"path"
	"sort"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
)

type anonymous struct{}

func (anonymous) Resolve(authn.Resource) (authn.Authenticator, error) { return authn.Anonymous, nil }

// dockerEntry is one registry's entry in a Docker configuration.
type dockerEntry struct {
	Username      string `json:"username"`
	Password      string `json:"password"`
	Auth          string `json:"auth"`
	IdentityToken string `json:"identitytoken"`
	RegistryToken string `json:"registrytoken"`
}

// keychain holds the entries of several Docker configurations.
type keychain []keyEntry

type keyEntry struct {
	host, path string // host may hold * wildcards
	auth       authn.AuthConfig
}

// Keychain makes credentials from the contents of imagePullSecrets
// (.dockerconfigjson or .dockercfg); none means anonymous. Keys match as
// kubelet matches them: host with wildcards, and path prefix; the longest wins.
func Keychain(dockerConfigs ...[]byte) (authn.Keychain, error) {
	var k keychain
	for _, b := range dockerConfigs {
		var cfg struct {
			Auths map[string]dockerEntry `json:"auths"`
		}
		if err := json.Unmarshal(b, &cfg); err != nil {
			return nil, fmt.Errorf("pull secret is no Docker configuration: %w", err)
		}
		entries := cfg.Auths
		if entries == nil { // .dockercfg has them at the top
			if err := json.Unmarshal(b, &entries); err != nil {
				return nil, fmt.Errorf("pull secret is no Docker configuration: %w", err)
			}
		}
		for key, e := range entries {
			auth, err := e.config()
			if err != nil {
				return nil, fmt.Errorf("pull secret: entry for %s: %w", key, err)
			}
			host, p := splitKey(key)
			k = append(k, keyEntry{host, p, auth})
		}
	}
	sort.SliceStable(k, func(i, j int) bool {
		if len(k[i].path) != len(k[j].path) {
			return len(k[i].path) > len(k[j].path)
		}
		return strings.Count(k[i].host, "*") < strings.Count(k[j].host, "*")
	})
	return k, nil
}

func (e dockerEntry) config() (authn.AuthConfig, error) {
	out := authn.AuthConfig{Username: e.Username, Password: e.Password, IdentityToken: e.IdentityToken, RegistryToken: e.RegistryToken}
	if e.Auth != "" {
		b, err := base64.StdEncoding.DecodeString(e.Auth)
		if err != nil {
			if b, err = base64.RawStdEncoding.DecodeString(strings.TrimRight(e.Auth, "=")); err != nil {
				return out, fmt.Errorf("auth is not base64: %w", err)
			}
		}
		user, pass, ok := strings.Cut(strings.TrimRight(string(b), "\x00\n"), ":")
		if !ok {
			return out, fmt.Errorf("auth does not hold user:password")
		}
		out.Username, out.Password = user, pass
	}
	return out, nil
}

// splitKey takes the key of an entry apart: "https://index.docker.io/v1/",
// "registry.example/team".
func splitKey(key string) (host, path string) {
	key = strings.TrimPrefix(strings.TrimPrefix(key, "https://"), "http://")
	host, path, _ = strings.Cut(strings.TrimSuffix(key, "/"), "/")
	if path == "v1" || path == "v2" {
		path = ""
	}
	return hubHost(host), path
}

// hubHost makes one name of Docker Hub's several.
func hubHost(host string) string {
	switch host {
	case "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com", "hub.docker.com":
		return dockerHub
	}
	return host
}

// Resolve finds the first credentials for a repository; see Candidates for others.
func (k keychain) Resolve(r authn.Resource) (authn.Authenticator, error) {
	for _, e := range k {
		if e.matches(r) {
			return authn.FromConfig(e.auth), nil
		}
	}
	return authn.Anonymous, nil
}

func (e keyEntry) matches(r authn.Resource) bool {
	_, repo, _ := strings.Cut(r.String(), "/")
	return matchHost(e.host, hubHost(r.RegistryStr())) && (e.path == "" || repo == e.path || strings.HasPrefix(repo, e.path+"/"))
}

// matchHost matches label by label: *.example matches one label more.
func matchHost(pattern, host string) bool {
	pHost, pPort, _ := strings.Cut(pattern, ":")
	hHost, hPort, _ := strings.Cut(host, ":")
	if pPort != hPort {
		return false
	}
	ps, hs := strings.Split(pHost, "."), strings.Split(hHost, ".")
	if len(ps) != len(hs) {
		return false
	}
	for i := range ps {
		if ok, err := path.Match(ps[i], hs[i]); err != nil || !ok {
			return false
		}
	}
	return true
}
