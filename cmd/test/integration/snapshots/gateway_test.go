//go:build integration

package snapshots

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/skiff-sh/skiff/backup"
)

const gatewayModule = "github.com/versity/versitygw/cmd/versitygw@v1.8.0"

// binaries of this test.
var binaries struct{ skiff, gateway string }

func TestMain(m *testing.M) {
	code, err := mainErr(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "snapshots:", err)
		code = 1
	}
	os.Exit(code)
}

func mainErr(m *testing.M) (code int, err error) {
	if binaries.skiff = os.Getenv("SKIFF_BINARY"); binaries.skiff == "" {
		if binaries.skiff, err = filepath.Abs("../../../../bin/skiff"); err != nil {
			return 1, err
		}
	}
	if _, err := os.Stat(binaries.skiff); err != nil {
		return 1, fmt.Errorf("%w: run make build first", err)
	}
	dir, err := os.MkdirTemp("", "skiff-snapshots-")
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	build := exec.Command("go", "install", gatewayModule)
	build.Dir, build.Env = dir, append(os.Environ(), "GOBIN="+dir, "GOFLAGS=", "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return 1, fmt.Errorf("build %s: %w\n%s", gatewayModule, err, out)
	}
	binaries.gateway = filepath.Join(dir, "versitygw")
	return m.Run(), nil
}

const bucket = "backups"

// gateway is a running S3 service with one bucket.
type gateway struct {
	dir, addr string
	ca, keys  string // files
	cmd       *exec.Cmd
}

func startGateway(t *testing.T) *gateway {
	t.Helper()
	dir := t.TempDir()
	g := &gateway{dir: dir, addr: freeAddr(t, "127.0.0.1"), ca: filepath.Join(dir, "ca.pem"), keys: filepath.Join(dir, "keys")}
	for _, d := range []string{"root", "meta"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	g.certify(t)
	write(t, g.keys, "[default]\naws_access_key_id = key\naws_secret_access_key = secret\n", 0o600)
	g.start(t)
	t.Cleanup(func() { g.kill() })
	c := g.client(t)
	if err := c.MakeBucket(t.Context(), bucket, minio.MakeBucketOptions{}); err != nil {
		t.Fatal(err)
	}
	return g
}

func (g *gateway) url() string { return "https://" + g.addr }

// start runs the service on its files and waits until it listens.
func (g *gateway) start(t *testing.T) {
	t.Helper()
	log, err := os.OpenFile(filepath.Join(g.dir, "log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	g.cmd = exec.Command(binaries.gateway, "--port", g.addr, "--cert", filepath.Join(g.dir, "cert.pem"), "--key", filepath.Join(g.dir, "key.pem"),
		"--access", "key", "--secret", "secret", "--quiet", "posix", "--sidecar", filepath.Join(g.dir, "meta"), filepath.Join(g.dir, "root"))
	g.cmd.Stdout, g.cmd.Stderr = log, log
	g.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := g.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for range 1200 {
		if conn, err := (&tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true}}).DialContext(t.Context(), "tcp", g.addr); err == nil { // only to see whether it is up
			conn.Close()
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	b, _ := os.ReadFile(log.Name())
	t.Fatalf("the S3 service does not listen:\n%s", b)
}

func (g *gateway) kill() {
	if g.cmd != nil {
		g.cmd.Process.Kill()
		g.cmd.Wait()
		g.cmd = nil
	}
}

// certify makes a CA and a certificate for the address.
func (g *gateway) certify(t *testing.T) {
	t.Helper()
	make := func(tmpl, parent *x509.Certificate, signer *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		tmpl.NotBefore, tmpl.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
		if parent == nil {
			parent, signer = tmpl, key
		}
		der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, &key.PublicKey, signer)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return cert, key
	}
	ca, caKey := make(&x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, nil, nil)
	cert, key := make(&x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "s3"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}, ca, caKey)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	write(t, g.ca, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Raw})), 0o600)
	write(t, filepath.Join(g.dir, "cert.pem"), string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})), 0o600)
	write(t, filepath.Join(g.dir, "key.pem"), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})), 0o600)
}

// place is the bucket's prefix p as skiff sees it.
func (g *gateway) place(t *testing.T, name string, change func(*backup.S3Config)) *backup.S3 {
	t.Helper()
	c := backup.S3Config{Endpoint: g.url(), CAFile: g.ca, CredentialsFile: g.keys}
	if change != nil {
		change(&c)
	}
	p, err := backup.NewS3(name, c)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// client is one that is not ours.
func (g *gateway) client(t *testing.T) *minio.Client {
	t.Helper()
	tr, err := minio.DefaultTransport(true)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	b, err := os.ReadFile(g.ca)
	if err != nil || !pool.AppendCertsFromPEM(b) {
		t.Fatal(err)
	}
	tr.TLSClientConfig.RootCAs = pool
	c, err := minio.New(g.addr, &minio.Options{Creds: credentials.NewStaticV4("key", "secret", ""), Secure: true, Transport: tr, Region: "us-east-1"})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// objects are the names in the bucket.
func (g *gateway) objects(ctx context.Context, t *testing.T) (out []string) {
	t.Helper()
	for o := range g.client(t).ListObjects(ctx, bucket, minio.ListObjectsOptions{Recursive: true}) {
		if o.Err != nil {
			t.Fatal(o.Err)
		}
		out = append(out, o.Key)
	}
	return out
}

// unfinished are the uploads that nobody has completed or given up.
func (g *gateway) unfinished(ctx context.Context, t *testing.T) (out []string) {
	t.Helper()
	for u := range g.client(t).ListIncompleteUploads(ctx, bucket, "", true) {
		if u.Err != nil {
			t.Fatal(u.Err)
		}
		out = append(out, u.Key)
	}
	return out
}

func write(t *testing.T, path, content string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
}

// freeAddr is a port that nobody has now, for TCP and UDP. It is none of those
// that the kernel gives to connections: one of them could have it before it is
// listened on, or while it is not.
func freeAddr(t *testing.T, ip string) string {
	t.Helper()
	const first, number = 12000, 20000
	for range 100 {
		addr := net.JoinHostPort(ip, strconv.Itoa(first+mathrand.IntN(number)))
		l, err := net.Listen("tcp", addr)
		if err != nil {
			continue
		}
		p, err := net.ListenPacket("udp", addr)
		l.Close()
		if err == nil {
			p.Close()
			return addr
		}
	}
	t.Fatal("no free port")
	return ""
}
