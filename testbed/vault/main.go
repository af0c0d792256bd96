// A real server of KV v2, AppRole and JWT for the tests: the core, the HTTP handler and the plugins of Vault 1.14.1, the
// line OpenBao was forked from (MPL 2.0). Without the command line, the web pages and the hundred other plugins, which
// take most of an hour to compile. Its data lies in files, so that it can be stopped and started.
package main

import (
	"flag"
	"log"
	"net/http"
	"os"
	"time"

	"github.com/hashicorp/go-hclog"
	jwt "github.com/hashicorp/vault-plugin-auth-jwt"
	kv "github.com/hashicorp/vault-plugin-secrets-kv"
	"github.com/hashicorp/vault/audit"
	auditfile "github.com/hashicorp/vault/builtin/audit/file"
	"github.com/hashicorp/vault/builtin/credential/approle"
	vaulthttp "github.com/hashicorp/vault/http"
	"github.com/hashicorp/vault/internalshared/configutil"
	"github.com/hashicorp/vault/sdk/helper/consts"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/hashicorp/vault/sdk/physical/file"
	"github.com/hashicorp/vault/vault"
)

type builtin map[consts.PluginType]map[string]logical.Factory

func (b builtin) Contains(name string, kind consts.PluginType) bool { _, ok := b[kind][name]; return ok }

func (b builtin) Get(name string, kind consts.PluginType) (func() (interface{}, error), bool) {
	factory, ok := b[kind][name]
	return func() (interface{}, error) { return factory, nil }, ok
}

func (b builtin) Keys(kind consts.PluginType) []string {
	var names []string
	for name := range b[kind] {
		names = append(names, name)
	}
	return names
}

func (b builtin) DeprecationStatus(name string, kind consts.PluginType) (consts.DeprecationStatus, bool) {
	return consts.Supported, b.Contains(name, kind)
}

func (b builtin) IsBuiltinEntPlugin(string, consts.PluginType) bool { return false }

func main() {
	address := flag.String("listen", "127.0.0.1:8200", "address and port")
	data := flag.String("data", "", "directory of what is kept")
	cert := flag.String("cert", "", "certificate, PEM")
	key := flag.String("key", "", "private key, PEM")
	flag.Parse()
	logger := hclog.New(&hclog.LoggerOptions{Output: os.Stderr, Level: hclog.Info})
	storage, err := file.NewFileBackend(map[string]string{"path": *data}, logger)
	if err != nil {
		log.Fatal(err)
	}
	secrets := map[string]logical.Factory{"kv": kv.Factory}
	logins := map[string]logical.Factory{"approle": approle.Factory, "jwt": jwt.Factory}
	core, err := vault.NewCore(&vault.CoreConfig{
		Physical:           storage,
		StorageType:        "file",
		Logger:             logger,
		DisableMlock:       true,
		LogicalBackends:    secrets,
		CredentialBackends: logins,
		AuditBackends:      map[string]audit.Factory{"file": auditfile.Factory},
		BuiltinRegistry:    builtin{consts.PluginTypeSecrets: secrets, consts.PluginTypeCredential: logins},
	})
	if err != nil {
		log.Fatal(err)
	}
	handler := vaulthttp.Handler.Handler(&vault.HandlerProperties{
		Core:           core,
		ListenerConfig: &configutil.Listener{Address: *address, MaxRequestDuration: 90 * time.Second, MaxRequestSize: 32 << 20},
	})
	server := &http.Server{Addr: *address, Handler: handler, ReadHeaderTimeout: 10 * time.Second}
	log.Fatal(server.ListenAndServeTLS(*cert, *key))
}
