package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
)

// The images of upstream's e2e tests, as far as Debian's packages, small Go
// programs and the agnhost program of the user make them. They are known by the
// last part of their repository. What the tests look for in them is there: the
// tools, users and paths.
//
// Limits: images of CSI drivers, network storage and of single other tests are
// not made; whoever wants their tests brings the archives.

const (
	e2ePasswd = passwd + "user-defined-in-image:x:1000:1000::/home/user-defined-in-image:/bin/sh\n"
	e2eGroup  = group + "user-defined-in-image:x:1000:\ngroup-defined-in-image:x:50000:user-defined-in-image\n"
)

// shell is what all images with a shell share. Debian's busybox runs its own
// applets before programs of the same name, so a real shell comes with them.
var (
	shellPackages = []string{"busybox-static", "dash"}
	shellPrograms = []string{"bin/busybox", "bin/dash"}
	shellDirs     = []string{"tmp", "root", "proc", "sys", "dev", "bin", "mnt", "etc", "home/user-defined-in-image", "usr/bin", "usr/local/bin", "var/www", "run"}
	e2eFiles      = map[string]string{"etc/passwd": e2ePasswd, "etc/group": e2eGroup, "etc/nsswitch.conf": "hosts: files dns\n"}
)

const e2eNginx = `daemon off;
error_log /dev/stderr info;
pid /run/nginx.pid;
events {}
http {
  access_log /dev/stdout;
  include mime.types;
  server {
    listen 80;
    root /usr/share/nginx/html;
  }
}
`

// e2eShell is busybox's shell, whose words tests look for, unless it would drop
// variables: Debian's does so where a name is no identifier, upstream's does not.
const e2eShell = `#!/bin/bash
while IFS= read -r -d '' v; do
  [[ ${v%%=*} =~ ^[A-Za-z_][A-Za-z0-9_]*$ ]] || exec -a "$0" /bin/bash "$@"
done </proc/self/environ
exec -a "$0" /bin/busybox "$@"
`

func e2eSpecs(agnhost string) []spec {
	dash := map[string]string{"bin/sh": "dash"}
	shell := spec{packages: shellPackages, programs: shellPrograms, dirs: shellDirs, files: e2eFiles, links: dash, build: installApplets}
	with := func(name string, packages, programs []string, config v1.Config) spec {
		s := shell
		s.name = name
		s.packages = append(append([]string(nil), shellPackages...), packages...)
		s.programs = append(append([]string(nil), shellPrograms...), programs...)
		config.Env = []string{searchPath}
		s.config = config
		return s
	}
	ports := func(list ...string) map[string]struct{} {
		out := map[string]struct{}{}
		for _, p := range list {
			out[p+"/tcp"] = struct{}{}
		}
		return out
	}
	tools := []string{"curl", "netcat-openbsd", "bind9-dnsutils", "libc-bin", "iproute2", "bash"}
	programs := []string{"usr/bin/curl", "bin/nc.openbsd", "usr/bin/dig", "usr/bin/nslookup", "usr/bin/getent", "bin/ip", "bin/ss", "bin/bash"}

	busybox := with("busybox", []string{"bash"}, []string{"bin/bash"}, v1.Config{Cmd: []string{"sh"}})
	busybox.links = nil
	busybox.build = func(root string) error {
		if err := os.WriteFile(filepath.Join(root, "bin/sh"), []byte(e2eShell), 0o755); err != nil {
			return err
		}
		return installApplets(root)
	}
	nonroot := busybox
	nonroot.name, nonroot.config = "nonroot", v1.Config{Cmd: []string{"sh"}, Env: []string{searchPath}, User: "1234"}
	dns := with("glibc-dns-testing", tools, programs, v1.Config{Cmd: []string{"sh"}})
	dns.links = merge(dash, map[string]string{"usr/local/bin/nc": "/bin/nc.openbsd"})
	nginx := with("nginx", []string{"nginx-light"}, []string{"usr/sbin/nginx"},
		v1.Config{Entrypoint: []string{"/usr/sbin/nginx"}, StopSignal: "SIGQUIT", ExposedPorts: ports("80")})
	nginx.trees = []string{"etc/nginx/mime.types"}
	nginx.files = merge(e2eFiles, map[string]string{"etc/nginx/nginx.conf": e2eNginx, "usr/share/nginx/html/index.html": "<h1>Welcome to nginx!</h1>\n"})
	nginx.dirs = append(append([]string(nil), shellDirs...), "var/log/nginx", "var/lib/nginx")

	out := []spec{busybox, nonroot, dns, nginx,
		with("perl", []string{"perl-base"}, []string{"usr/bin/perl"}, v1.Config{Cmd: []string{"perl", "-de0"}}),
		with("ipc-utils", []string{"util-linux", "util-linux-extra"}, []string{"usr/bin/ipcs", "usr/bin/ipcmk", "usr/bin/ipcrm"}, v1.Config{Cmd: []string{"sh"}}),
		{name: "kitten", files: map[string]string{"data.json": "{\"image\": \"kitten.jpg\"}\n", "etc/os-release": "NAME=\"stands for Alpine Linux\"\n"}},
		{name: "pause", dirs: []string{"proc", "sys", "dev"}, config: v1.Config{Entrypoint: []string{"/pause"}, User: "65535:65535"},
			build: goProgram("pause", "github.com/skiff-sh/skiff/cmd/test/images/pause")},
	}
	nnp := with("nonewprivs", nil, nil, v1.Config{Cmd: []string{"nnp"}})
	nnp.build = func(root string) error {
		if err := installApplets(root); err != nil {
			return err
		}
		dir := filepath.Join(root, "usr/local/bin")
		if err := goProgram("nnp", "github.com/skiff-sh/skiff/cmd/test/images/nonewprivs")(dir); err != nil {
			return err
		}
		return os.Chmod(filepath.Join(dir, "nnp"), 0o755|os.ModeSetuid|os.ModeSetgid)
	}
	out = append(out, nnp)
	if agnhost != "" {
		a := with("agnhost", tools, programs, v1.Config{Entrypoint: []string{"/agnhost"}, Cmd: []string{"pause"}, ExposedPorts: ports("80", "8080", "8081", "9376", "5000")})
		a.links = merge(dns.links, map[string]string{"agnhost-2": "agnhost"})
		a.dirs = append(append([]string(nil), shellDirs...), "uploads")
		a.build = func(root string) error { return finishAgnhost(root, agnhost) }
		out = append(out, a)
	}
	return out
}

// finishAgnhost adds the program, a certificate for its TLS port, and the
// registry that it can serve, with the pause image.
func finishAgnhost(root, program string) error {
	if err := installApplets(root); err != nil {
		return err
	}
	b, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(root, "agnhost"), b, 0o755); err != nil {
		return err
	}
	if err := selfSigned(filepath.Join(root, "localhost.crt"), filepath.Join(root, "localhost.key")); err != nil {
		return err
	}
	for _, s := range e2eSpecs("") {
		if s.name != "pause" {
			continue
		}
		return buildAs(s, func(pause string) error {
			img, err := imageOf(pause, s.config)
			if err != nil {
				return err
			}
			return registryFolder(filepath.Join(root, "var/registry/pause"), "testing", img)
		})
	}
	return nil
}

// selfSigned writes a certificate for localhost.
func selfSigned(certFile, keyFile string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	t := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(20, 0, 0), BasicConstraintsValid: true, IsCA: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}}
	cert, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	if err := os.WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}), 0o644); err != nil {
		return err
	}
	return os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), 0o644)
}

// registryFolder writes an image as agnhost's fake-registry-server reads it:
// manifests/TAG holds the digest of an index, everything else lies below its
// own digest.
func registryFolder(dir, tag string, img v1.Image) error {
	index := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: img,
		Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "amd64"}}})
	put := func(kind string, b []byte) (digest string, err error) {
		sum := fmt.Sprintf("%x", sha256.Sum256(b))
		at := filepath.Join(dir, kind, "sha256", sum[:2], sum)
		if err := os.MkdirAll(at, 0o755); err != nil {
			return "", err
		}
		return "sha256:" + sum, os.WriteFile(filepath.Join(at, "data"), b, 0o644)
	}
	top, err := index.RawManifest()
	if err != nil {
		return err
	}
	digest, err := put("manifests", top)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "manifests", tag), []byte(digest+"\n"), 0o644); err != nil {
		return err
	}
	manifest, err := img.RawManifest()
	if err != nil {
		return err
	}
	config, err := img.RawConfigFile()
	if err != nil {
		return err
	}
	layers, err := img.Layers()
	if err != nil {
		return err
	}
	if _, err := put("manifests", manifest); err != nil {
		return err
	}
	if _, err := put("blobs", config); err != nil {
		return err
	}
	for _, l := range layers {
		r, err := l.Compressed()
		if err != nil {
			return err
		}
		var b bytes.Buffer
		if _, err := io.Copy(&b, r); err != nil {
			return err
		}
		if _, err := put("blobs", b.Bytes()); err != nil {
			return err
		}
	}
	return nil
}

// buildE2E makes an archive for each reference. What is not known is told, and
// is no error.
func buildE2E(refs []string, agnhost, out string) error {
	byName := map[string][]string{}
	for _, r := range refs {
		tag, err := name.NewTag(r)
		if err != nil {
			return err
		}
		last := path.Base(tag.RepositoryStr())
		byName[last] = append(byName[last], r)
	}
	for _, s := range e2eSpecs(agnhost) {
		wanted := byName[s.name]
		delete(byName, s.name)
		if len(wanted) == 0 {
			continue
		}
		err := buildAs(s, func(root string) error {
			for _, ref := range wanted {
				file := filepath.Join(out, archiveName(ref))
				if err := write(root, s.config, ref, file+".new"); err != nil {
					return err
				}
				if err := os.Rename(file+".new", file); err != nil {
					return err
				}
				fmt.Println(ref, file)
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("image %s: %w", s.name, err)
		}
	}
	for _, left := range byName {
		log.Printf("cannot make %s", strings.Join(left, ", "))
	}
	return nil
}

// archiveName is the file of a reference.
func archiveName(ref string) string {
	return strings.NewReplacer("/", "_", ":", "_").Replace(ref) + ".tar"
}
