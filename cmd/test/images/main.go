// Command images builds the container images of the tests as one OCI layout
// archive each: busybox, nginx and redis from Debian's packages, the counter
// application and the prober from source. It needs apt, dpkg-deb and Go, and no
// registry. With -refs it builds what stands in for the images of upstream's
// e2e tests (e2e.go).
//
// Only the programs, what they link to and their configuration go into an
// image, so the images are small and start fast.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// spec describes one image.
type spec struct {
	name string // file name and repository
	tags []string
	// packages to unpack; their dependencies come along.
	packages []string
	// programs to keep, with the libraries they need.
	programs []string
	// trees to keep as they are in the packages.
	trees []string
	// files to add: path -> content.
	files map[string]string
	// dirs to make, owned by root, mode 1777 when under /tmp.
	dirs []string
	// links to make: path -> target.
	links  map[string]string
	config v1.Config
	// build puts further files into the root.
	build func(root string) error
}

const passwd = "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/var/www:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"
const group = "root:x:0:\nwww-data:x:33:\nnogroup:x:65534:\n"

const searchPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

const nginxConf = `user www-data;
daemon off;
error_log /dev/stderr info;
pid /run/nginx.pid;
events {}
http {
  access_log /dev/stdout;
  default_type text/plain;
  server {
    listen 80;
    location / { return 200 "nginx on $hostname\n"; }
  }
}
`

func specs(release string) []spec {
	etc := map[string]string{"etc/passwd": passwd, "etc/group": group, "etc/nsswitch.conf": "hosts: files dns\n"}
	return []spec{
		{
			name: "busybox", tags: []string{"1.36"}, packages: []string{"busybox-static"},
			programs: []string{"bin/busybox"}, files: etc, dirs: []string{"tmp", "root", "proc", "sys", "dev", "bin"},
			build:  installApplets,
			config: v1.Config{Cmd: []string{"sh"}, Env: []string{searchPath}},
		},
		{
			name: "nginx", tags: []string{"1.22"}, packages: []string{"nginx-light"},
			programs: []string{"usr/sbin/nginx"}, trees: []string{"etc/nginx/mime.types"},
			files: merge(etc, map[string]string{"etc/nginx/nginx.conf": nginxConf}),
			dirs:  []string{"tmp", "run", "var/log/nginx", "var/lib/nginx", "proc", "sys", "dev"},
			config: v1.Config{Entrypoint: []string{"/usr/sbin/nginx"}, Env: []string{searchPath}, StopSignal: "SIGQUIT",
				ExposedPorts: map[string]struct{}{"80/tcp": {}}},
		},
		{
			name: "redis", tags: []string{"7.0"}, packages: []string{"redis-server"},
			programs: []string{"usr/bin/redis-check-rdb", "usr/bin/redis-cli"},
			links:    map[string]string{"usr/bin/redis-server": "redis-check-rdb"},
			files:    etc, dirs: []string{"tmp", "data", "proc", "sys", "dev"},
			config: v1.Config{Entrypoint: []string{"/usr/bin/redis-server"}, Cmd: []string{"--protected-mode", "no", "--save", "", "--dir", "/data"},
				Env: []string{searchPath}, WorkingDir: "/data", ExposedPorts: map[string]struct{}{"6379/tcp": {}}},
		},
		{
			name: "counter", tags: []string{release}, files: etc, dirs: []string{"tmp", "proc", "sys", "dev"},
			build: goProgram("counter", "github.com/skiff-sh/skiff/cmd/test/counter"),
			config: v1.Config{Entrypoint: []string{"/counter"}, Env: []string{searchPath, "RELEASE=" + release},
				ExposedPorts: map[string]struct{}{"8080/tcp": {}}},
		},
		{
			name: "prober", tags: []string{"1"}, files: etc, dirs: []string{"tmp", "proc", "sys", "dev"},
			build:  goProgram("prober", "github.com/skiff-sh/skiff/cmd/test/traffic/prober"),
			config: v1.Config{Entrypoint: []string{"/prober"}, Env: []string{searchPath}},
		},
	}
}

func merge(a, b map[string]string) map[string]string {
	out := map[string]string{}
	for k, v := range a {
		out[k] = v
	}
	for k, v := range b {
		out[k] = v
	}
	return out
}

func main() {
	log.SetFlags(0)
	out := flag.String("out", "", "folder for the archives, one NAME.tar each")
	only := flag.String("only", "", "comma-separated names; all when empty")
	registry := flag.String("name", "skiff.test", "registry host in the images' names")
	refs := flag.String("refs", "", "comma-separated references of e2e images: those are made, as far as they can be")
	agnhost := flag.String("agnhost", "", "with -refs: the program of the agnhost images")
	flag.Parse()
	if *out == "" || flag.NArg() > 0 {
		log.Fatal("usage: images -out FOLDER [-only busybox,nginx,redis,counter,prober] [-name HOST]\n       images -out FOLDER -refs REF,... [-agnhost PROGRAM]")
	}
	if err := os.MkdirAll(*out, 0o755); err != nil {
		log.Fatal(err)
	}
	if *refs != "" {
		if err := buildE2E(strings.Split(*refs, ","), *agnhost, *out); err != nil {
			log.Fatal(err)
		}
		return
	}
	for _, release := range []string{"v1", "v2"} {
		for _, s := range specs(release) {
			if release != "v1" && s.name != "counter" || !wanted(*only, s.name) {
				continue
			}
			if err := build(s, *out, *registry); err != nil {
				log.Fatalf("image %s: %v", s.name, err)
			}
		}
	}
}

func wanted(only, name string) bool {
	if only == "" {
		return true
	}
	for n := range strings.SplitSeq(only, ",") {
		if n == name {
			return true
		}
	}
	return false
}

func build(s spec, out, registry string) error {
	return buildAs(s, func(root string) error {
		for _, tag := range s.tags {
			file := filepath.Join(out, s.name+".tar")
			if s.name == "counter" {
				file = filepath.Join(out, s.name+"-"+tag+".tar")
			}
			ref := fmt.Sprintf("%s/%s:%s", registry, s.name, tag)
			if err := write(root, s.config, ref, file); err != nil {
				return err
			}
			fmt.Println(ref, file)
		}
		return nil
	})
}

// buildAs makes the root of an image and gives it to save.
func buildAs(s spec, save func(root string) error) (err error) {
	tmp, err := os.MkdirTemp("", "skiff-image-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	root := filepath.Join(tmp, "root")
	if len(s.packages) > 0 {
		unpacked := filepath.Join(tmp, "packages")
		if err := unpack(s.packages, filepath.Join(tmp, "debs"), unpacked); err != nil {
			return err
		}
		if err := keep(s, unpacked, root); err != nil {
			return err
		}
	}
	for _, d := range s.dirs {
		mode := os.FileMode(0o755)
		if d == "tmp" {
			mode = 0o777 | os.ModeSticky
		}
		p := filepath.Join(root, d)
		if err := os.MkdirAll(p, 0o755); err != nil {
			return err
		}
		if err := os.Chmod(p, mode); err != nil {
			return err
		}
	}
	for name, text := range s.files {
		p := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			return err
		}
	}
	for name, target := range s.links {
		if err := os.Symlink(target, filepath.Join(root, name)); err != nil {
			return err
		}
	}
	if s.build != nil {
		if err := s.build(root); err != nil {
			return err
		}
	}
	return save(root)
}

// installApplets links every applet to busybox, as `busybox --install` does. A
// program that is there already stays.
func installApplets(root string) error {
	out, err := exec.Command(filepath.Join(root, "bin/busybox"), "--list").Output()
	if err != nil {
		return fmt.Errorf("list applets: %w", err)
	}
	for applet := range strings.FieldsSeq(string(out)) {
		if applet == "busybox" {
			continue
		}
		if err := os.Symlink("busybox", filepath.Join(root, "bin", applet)); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}

// goProgram builds a program from source into /NAME.
func goProgram(name, pkg string) func(root string) error {
	return func(root string) error {
		if err := os.MkdirAll(root, 0o755); err != nil {
			return err
		}
		cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(root, name), pkg)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if b, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("build %s: %w\n%s", name, err, b)
		}
		return nil
	}
}
